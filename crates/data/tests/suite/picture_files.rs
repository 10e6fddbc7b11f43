//! Files of pictures: every format as Pillow reads it, what is written is read again, and no bytes make a reader panic.

use std::borrow::Cow;
use std::path::Path;

use densely_core::Error;
use densely_data::image::{
    AnyImage, Image, ReadOptions, decode, decode_with, encode_jpeg, encode_png, read, write,
    write_png, write_png16,
};
use densely_testkit::{Golden, assert_close};
use proptest::prelude::*;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::TableFile;

fn golden() -> Golden {
    Golden::open(env!("CARGO_MANIFEST_DIR"), "image_formats")
}

fn file(golden: &Golden, case: &str) -> Vec<u8> {
    Vec::try_from(golden.tensor(&format!("{case}.file"))).unwrap()
}

/// `[height, width, channels]`, i32.
fn pixels(image: &AnyImage) -> Tensor {
    let shape = [image.height(), image.width(), image.channels()].map(|n| n as i64);
    let values: Vec<i32> = match image {
        AnyImage::Eight(image) => image.pixels().iter().map(|v| i32::from(*v)).collect(),
        AnyImage::Sixteen(image) => image.pixels().iter().map(|v| i32::from(*v)).collect(),
    };
    Tensor::from_slice(&values).view(shape)
}

/// Most levels by which a decoder may differ from Pillow's: JPEG leaves rounding, and the way from half to full colour
/// resolution, to the decoder.
fn tolerance(case: &str) -> f64 {
    if case.starts_with("jpeg") { 3.0 } else { 0.0 }
}

#[test]
fn every_format_is_read_as_pillow_reads_it() {
    let golden = golden();
    let config: Value = golden.config();
    let cases = config["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 35);
    for case in cases {
        let case = case.as_str().unwrap();
        let image = decode(&file(&golden, case), Path::new(case)).unwrap();
        let expected = golden.tensor(&format!("{case}.pixels")).to_kind(Kind::Int);
        assert_eq!(pixels(&image).size(), expected.size(), "{case}");
        let worst = (pixels(&image) - &expected).abs().max().int64_value(&[]);
        assert!(worst as f64 <= tolerance(case), "{case}: {worst} levels");
        let grey = format!("{case}.grey");
        if golden.has(&grey) {
            let made = pixels(&AnyImage::Eight(image.to_grey8().into_owned()));
            assert_close(&made, &golden.tensor(&grey), 0.0, tolerance(case));
        }
    }
}

#[test]
fn depths_and_channels_convert() {
    let deep = Image::new(1, 2, 1, vec![0x12ffu16, 65_535]).unwrap();
    let deep = AnyImage::from(deep);
    assert_eq!(deep.to_rgb8().pixels(), [0x12, 0x12, 0x12, 255, 255, 255]);
    assert_eq!(deep.to_grey8().pixels(), [0x12, 255]);
    assert_eq!(deep.to_grey(), deep);
    let expected = Tensor::from_slice(&[4863.0f32 / 65_535.0, 1.0]).view([1, 2, 1]);
    assert_eq!(deep.to_tensor(), expected);
    let colours = AnyImage::from(Image::new(2, 1, 3, vec![255u8, 0, 0, 0, 128, 255]).unwrap());
    assert_eq!(colours.to_grey8().pixels(), [76, 104]);
    assert_eq!(colours.to_grey(), colours.to_grey8().into_owned().into());
    assert!(matches!(colours.to_rgb8(), Cow::Borrowed(_)));
    // The same picture with 16 bits.
    let deep = [255u16, 0, 0, 0, 128, 255]
        .map(|value| value * 257)
        .to_vec();
    let deep = AnyImage::from(Image::new(2, 1, 3, deep).unwrap());
    let AnyImage::Sixteen(grey) = deep.to_grey() else {
        panic!("16 bits")
    };
    assert_eq!(grey.pixels(), [19_595, 26_781]);
    let planes = [1.0, 0.0, 0.0, 128.0f32 / 255.0, 0.0, 1.0];
    assert_eq!(
        colours.to_tensor(),
        Tensor::from_slice(&planes).view([3, 1, 2])
    );
    assert_eq!(
        (colours.width(), colours.height(), colours.channels()),
        (2, 1, 3)
    );
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for channels in [1, 3] {
        let values = (0..7 * 5 * channels)
            .map(|v| (v * 37 % 256) as u8)
            .collect();
        let image = Image::new(7, 5, channels, values).unwrap();
        for name in ["a.png", "a.PNG", "a.webp"] {
            write(&at(name), &image).unwrap();
            let again = read(&at(name)).unwrap();
            // WebP holds colours only.
            let expected = AnyImage::from(image.clone());
            if name == "a.webp" {
                assert_eq!(again.to_rgb8(), expected.to_rgb8());
            } else {
                assert_eq!(again, expected);
            }
        }
        write_png(&at("no ending"), &image).unwrap();
        assert_eq!(read(&at("no ending")).unwrap(), image.clone().into());
        let flat = Image::new(16, 8, channels, vec![200u8; 128 * channels]).unwrap();
        write(&at("a.jpeg"), &flat).unwrap();
        let again = read(&at("a.jpeg")).unwrap();
        assert_close(&again.to_tensor(), &flat.to_tensor(), 0.0, 1.5 / 255.0);
        let deep = image
            .pixels()
            .iter()
            .map(|v| u16::from(*v) * 251 + 3)
            .collect();
        let deep = Image::new(7, 5, channels, deep).unwrap();
        write_png16(&at("deep.png"), &deep).unwrap();
        assert_eq!(read(&at("deep.png")).unwrap(), deep.into());
    }
    let image = Image::new(1, 1, 1, vec![0u8]).unwrap();
    let error = write(&at("a.bmp"), &image).unwrap_err().to_string();
    assert!(
        error.contains("ends in .png, .jpg, .jpeg or .webp, got `"),
        "{error}"
    );
    assert!(!at("a.bmp").exists());
    for quality in [0, 101] {
        let error = encode_jpeg(&image, quality).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("setting `quality`: expected 1 to 100, got {quality}")
        );
    }
    let long = Image::new(70_000, 1, 1, vec![0u8; 70_000]).unwrap();
    let error = encode_jpeg(&long, 90).unwrap_err().to_string();
    assert!(
        error.contains("at most 65535 pixels a side, got 70000 × 1"),
        "{error}"
    );
}

#[test]
fn a_lower_quality_is_a_smaller_and_worse_jpeg() {
    let golden = golden();
    let image = decode(&file(&golden, "png_rgb"), Path::new("x"))
        .unwrap()
        .into_rgb8();
    let [low, high] = [10, 90].map(|quality| encode_jpeg(&image, quality).unwrap());
    assert!(low.len() < high.len());
    let error = |bytes: &[u8]| {
        let again = decode(bytes, Path::new("x")).unwrap().to_tensor();
        (again - image.to_tensor())
            .abs()
            .mean(Kind::Float)
            .double_value(&[])
    };
    assert!(error(&low) > 2.0 * error(&high));
}

#[test]
fn what_is_no_picture_is_told_apart() {
    let golden = golden();
    let png = file(&golden, "png_rgb");
    let jpeg = file(&golden, "jpeg_rgb");
    let cases: [(&[u8], &str); 8] = [
        (
            b"",
            "x.png: damaged or of another format: it is empty; copy or download it again",
        ),
        (
            b"name,label\na.png,3\n",
            "x.png: holds text, not a picture; expected JPEG, PNG, WebP, GIF, BMP or TIFF",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "x.png: is a Git LFS pointer, not the picture; run `git lfs pull`",
        ),
        (
            &[1, 2, 3, 200, 0, 9, 9, 9, 9, 9, 9, 9],
            "x.png: is no picture of a known format; expected JPEG, PNG, WebP, GIF, BMP or TIFF",
        ),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "x.png: is a HEIF picture, which is not read; convert it to JPEG, PNG, WebP, GIF, BMP or TIFF",
        ),
        (
            b"P6\n1 1\n255\nabc",
            "x.png: is a Pnm picture, which is not read; convert it to JPEG, PNG, WebP, GIF, BMP or TIFF",
        ),
        (
            &png[..png.len() / 2],
            "x.png: damaged or of another format: it ends too early; copy or download it again",
        ),
        (
            &jpeg[..jpeg.len() - 2],
            "x.png: damaged or of another format: it ends too early; copy or download it again",
        ),
    ];
    for (bytes, expected) in cases {
        let file = TableFile::new("x.png", bytes);
        let error = decode(bytes, Path::new("x.png")).unwrap_err().to_string();
        assert_eq!(error, expected);
        let error = read(&file.path).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
    }
    let missing = read(Path::new("/no/such.png")).unwrap_err();
    assert!(
        matches!(missing, Error::Io { .. }) && missing.to_string().starts_with("/no/such.png: ")
    );
}

#[cfg(unix)]
#[test]
fn folders_and_devices_are_no_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let device = folder.path().join("x.png");
    std::os::unix::fs::symlink("/dev/null", &device).unwrap();
    for path in [device.as_path(), folder.path()] {
        let error = read(path).unwrap_err().to_string();
        let path = path.display();
        assert_eq!(
            error,
            format!("{path}: is no plain file; expected a picture")
        );
    }
}

/// A PNG whose header says `width` × `height`.
fn claiming(png: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut bytes = png.to_vec();
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let mut crc = u32::MAX;
    for byte in &bytes[12..29] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
    bytes
}

#[test]
fn a_bomb_is_refused_before_memory_is_taken() {
    let golden = golden();
    let png = file(&golden, "png_rgb");
    let fail = |bytes: &[u8], most: u64| {
        let options = ReadOptions { max_pixels: most };
        decode_with(bytes, Path::new("x"), &options)
            .unwrap_err()
            .to_string()
    };
    let most = ReadOptions::default().max_pixels;
    assert_eq!(
        fail(&claiming(&png, 30_000, 30_000), most),
        "x: has 30000 × 30000 pixels, more than 200000000; scale it down or raise `max_pixels`"
    );
    assert_eq!(
        fail(&claiming(&png, 65_536, 1), most),
        "x: has 65536 × 1 pixels, more than 65535 a side; cut it into parts"
    );
    let thin = fail(&claiming(&png, 14_000, 14_000), most);
    assert!(
        thin.contains("it claims 14000 × 14000 pixels, more than its"),
        "{thin}"
    );
    assert_eq!(
        fail(&png, 383),
        "x: has 24 × 16 pixels, more than 383; scale it down or raise `max_pixels`"
    );
    let options = ReadOptions { max_pixels: 384 };
    assert!(decode_with(&png, Path::new("x"), &options).is_ok());
}

#[test]
fn a_picture_without_pixels_is_damaged() {
    let mut bytes = file(&golden(), "gif");
    bytes[6] = 0;
    let error = decode(&bytes, Path::new("x")).unwrap_err().to_string();
    assert!(
        error.ends_with("its header says 0 × 16 pixels: nothing"),
        "{error}"
    );
}

/// Small files of all kinds.
fn files() -> Vec<Vec<u8>> {
    let golden = golden();
    let names = [
        "png_rgb",
        "png_palette",
        "png_grey_16",
        "png_animated",
        "png_turned_3",
        "jpeg_rgb",
        "jpeg_grey",
        "jpeg_progressive",
        "jpeg_restarts",
        "jpeg_cmyk",
        "jpeg_turned_6",
        "webp_lossless",
        "webp_lossy",
        "webp_alpha",
        "webp_animated",
        "gif",
        "gif_animated",
        "bmp",
        "tiff",
        "tiff_packed",
    ];
    let mut files: Vec<Vec<u8>> = names.iter().map(|name| file(&golden, name)).collect();
    let image = Image::new(9, 9, 3, (0..243).map(|v| v as u8).collect()).unwrap();
    files.push(encode_png(&image).unwrap());
    files.push(encode_jpeg(&image, 80).unwrap());
    files
}

/// Decodes with a small limit; whatever comes out is within it.
fn try_decode(bytes: &[u8]) {
    let options = ReadOptions {
        max_pixels: 1 << 20,
    };
    match decode_with(bytes, Path::new("x"), &options) {
        Ok(image) => assert!(image.width() * image.height() <= 1 << 20),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains("could not make sense"), "a decoder panicked");
            assert!(!text.contains('\n') && text.starts_with("x: "), "{text}");
        }
    }
}

#[test]
fn no_truncation_makes_a_reader_panic() {
    for bytes in files() {
        for end in 0..bytes.len().min(700) {
            try_decode(&bytes[..end]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_damage_makes_a_reader_panic(
        which in 0usize..22,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        head: bool,
    ) {
        thread_local!(static FILES: Vec<Vec<u8>> = files());
        let mut bytes = FILES.with(|files| files[which].clone());
        for (at, flip) in flips {
            // Headers are where damage is dangerous.
            let range = if head { bytes.len().min(64) } else { bytes.len() };
            bytes[at.index(range)] ^= flip;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        try_decode(&bytes);
    }

    #[test]
    fn no_bytes_behind_a_known_start_make_a_reader_panic(
        start in prop::sample::select(vec![
            &b"\x89PNG\r\n\x1a\n"[..], b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBPVP8 ", b"RIFF\x40\0\0\0WEBPVP8L", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        try_decode(&[start, &rest].concat());
    }
}
