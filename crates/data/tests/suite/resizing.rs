//! Resizing, equal to Pillow's in every bit.

use densely_data::image::{Filter, Image, resize, resize_box};
use densely_testkit::Golden;
use proptest::prelude::*;
use serde_json::Value;
use tch::Tensor;

fn picture(pixels: &Tensor) -> Image<u8> {
    let [height, width, channels] = pixels.size()[..] else {
        panic!("a picture has three dimensions")
    };
    let values = Vec::try_from(pixels.flatten(0, -1)).unwrap();
    Image::new(width as usize, height as usize, channels as usize, values).unwrap()
}

#[test]
fn resizing_equals_pillow_bit_for_bit() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "image_resize");
    let config: Value = golden.config();
    let cases = config["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 78);
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let numbers = |key: &str| -> Vec<f64> {
            let list = case[key].as_array().unwrap().iter();
            list.map(|v| v.as_f64().unwrap()).collect()
        };
        let image = picture(&golden.tensor(case["picture"].as_str().unwrap()));
        let filter: Filter = serde_json::from_value(case["filter"].clone()).unwrap();
        let (size, part) = (numbers("size"), numbers("box"));
        let part: [f64; 4] = part.try_into().unwrap();
        let (width, height) = (size[0] as usize, size[1] as usize);
        let made = resize_box(&image, part, width, height, filter).unwrap();
        assert_eq!(made, picture(&golden.tensor(name)), "{name}");
    }
}

#[test]
fn sides_and_boxes_are_checked() {
    let image = Image::new(4, 3, 1, vec![7u8; 12]).unwrap();
    let error = resize(&image, 0, 5, Filter::Bicubic).unwrap_err();
    assert_eq!(
        error.to_string(),
        "setting `width`: expected 1 to 65535 pixels, got 0"
    );
    for part in [
        [0.0, 0.0, 4.5, 3.0],
        [-1.0, 0.0, 2.0, 2.0],
        [2.0, 0.0, 2.0, 3.0],
        [0.0, 0.0, f64::NAN, 3.0],
    ] {
        let error = resize_box(&image, part, 2, 2, Filter::Box).unwrap_err();
        assert!(error.to_string().contains("inside 4 × 3 pixels"), "{error}");
    }
    for (left, top, width, height) in [
        (0, 0, 5, 1),
        (4, 0, 1, 1),
        (0, 2, 1, 2),
        (0, 0, 0, 1),
        (usize::MAX, 0, 1, 1),
    ] {
        let error = image.crop(left, top, width, height).unwrap_err();
        assert!(error.to_string().contains("4 × 3 pixels"), "{error}");
    }
}

#[test]
fn a_crop_holds_the_pixels_of_its_place() {
    let image = Image::new(3, 2, 3, (0..18u16).collect()).unwrap();
    let part = image.crop(1, 1, 2, 1).unwrap();
    assert_eq!((part.width(), part.height(), part.channels()), (2, 1, 3));
    assert_eq!(part.pixels(), [12, 13, 14, 15, 16, 17]);
    assert_eq!(image.crop(0, 0, 3, 2).unwrap(), image);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_colour_stays_itself(
        value: u8,
        (width, height) in (1usize..40, 1usize..40),
        (to_width, to_height) in (1usize..90, 1usize..90),
        filter in prop::sample::select(vec![
            Filter::Nearest, Filter::Box, Filter::Bilinear, Filter::Hamming, Filter::Bicubic, Filter::Lanczos,
        ]),
    ) {
        let image = Image::new(width, height, 3, vec![value; width * height * 3]).unwrap();
        let made = resize(&image, to_width, to_height, filter).unwrap();
        prop_assert_eq!((made.width(), made.height()), (to_width, to_height));
        prop_assert!(made.pixels().iter().all(|v| *v == value));
    }
}
