//! Scenes in one file of arrays.

use densely_core::Result;
use densely_fields::scene::Scene;
use densely_testkit::{assert_bits, assert_close};
use std::io::{Cursor, Write};
use std::path::Path;
use tch::{Device, Kind, Tensor};

use super::scene;

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

pub(super) fn npz(arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file(format!("{name}.npy"), options)
            .expect("started");
        zip.write_all(bytes).expect("written");
    }
    zip.finish().expect("zipped").into_inner()
}

/// The arrays of [`scene`].
pub(super) fn arrays() -> Vec<(&'static str, Vec<u8>)> {
    let scene = scene();
    let poses = scene.views().iter().flat_map(|view| {
        let matrix = view.pose.matrix();
        matrix
            .concat()
            .into_iter()
            .flat_map(|x| (x as f32).to_le_bytes())
    });
    let images: Vec<u8> = (0..160).collect();
    vec![
        ("images", npy("|u1", "(2, 4, 5, 4)", &images)),
        (
            "poses",
            npy("<f4", "(2, 4, 4)", &poses.collect::<Vec<u8>>()),
        ),
        ("focal", npy("<f8", "()", &6f64.to_le_bytes())),
    ]
}

#[test]
fn npz_files_hold_whole_scenes() -> Result<()> {
    let name = Path::new("scene.npz");
    let read = Scene::decode_npz(Cursor::new(npz(&arrays())), name)?;
    let expected = scene();
    let (ours, theirs) = (read.view_pixels(1)?, expected.view_pixels(1)?);
    assert_bits(&ours.rgba, &theirs.rgba);
    assert_close(ours.rays.dirs(), theirs.rays.dirs(), 1e-6, 1e-7);
    assert_close(ours.rays.origins(), theirs.rays.origins(), 1e-6, 1e-7);
    // Without transparency, with times and the angle instead of the focal length.
    let mut other = arrays();
    let angle = 2.0 * (0.5 * 5.0 / 6.0f64).atan();
    let images: Vec<u8> = (0..120).collect();
    other[0].1 = npy("|u1", "(2, 4, 5, 3)", &images);
    other[2] = (
        "camera_angle_x",
        npy("<f4", "()", &(angle as f32).to_le_bytes()),
    );
    other.push((
        "times",
        npy("<f8", "(2,)", &[0.0f64, 0.5].map(f64::to_le_bytes).concat()),
    ));
    let read = Scene::decode_npz(Cursor::new(npz(&other)), name)?;
    let pixels = read.view_pixels(1)?;
    assert_close(pixels.rays.dirs(), theirs.rays.dirs(), 1e-6, 1e-6);
    assert!(
        (pixels.rgba.select(1, 3) - 1.0)
            .abs()
            .max()
            .double_value(&[])
            == 0.0
    );
    let times = pixels.times.expect("times");
    assert_bits(&times, &Tensor::full([20], 0.5, (Kind::Float, Device::Cpu)));
    Ok(())
}

#[test]
fn npz_files_that_cannot_be_used_are_explained() {
    let with = |key: &'static str, bytes: Vec<u8>| {
        let mut arrays = arrays();
        arrays.retain(|(name, _)| *name != key);
        if !bytes.is_empty() {
            arrays.push((key, bytes));
        }
        npz(&arrays)
    };
    let mut mirrored = arrays()[1].1.clone();
    let at = mirrored.len() - 128 + 5 * 4;
    mirrored[at..at + 4].copy_from_slice(&(-1f32).to_le_bytes());
    for (bytes, words) in [
        (with("images", vec![]), "has no array `images`"),
        (with("poses", vec![]), "has no array `poses`"),
        (with("focal", vec![]), "nothing says the focal length"),
        (
            with("images", npy("|u1", "(2, 4, 5)", &[0; 40])),
            "`images` must be u8 [n, height, width, 4]",
        ),
        (
            with("images", npy("<f4", "(1,)", &[0; 4])),
            "`images` must be u8",
        ),
        (
            with("images", npy("|u1", "(2, 4, 5, 4)", &[0; 159])),
            "has not the 160 bytes",
        ),
        (
            with("images", npy("|u1", "(2, 4, 5, 4)", &[0; 161])),
            "has not the 160 bytes",
        ),
        (
            with("images", npy("|u1", "(99999999, 99999, 9999, 9999)", &[])),
            "too much",
        ),
        (
            with("images", npy("|u1", "(1100, 1000, 1000, 4)", &[])),
            "too much, for 4 GiB are the most; reduce the pictures",
        ),
        (
            with("images", npy(">f4", "(1,)", &[0; 4])),
            "little-endian, got",
        ),
        (
            with("images", npy("|u1", "(0, 4, 5, 4)", &[])),
            "`poses` must be [0, 4, 4]",
        ),
        (
            with("images", b"not numpy, but long enough".to_vec()),
            "expected an array of NumPy",
        ),
        (
            with("poses", mirrored),
            "the pose of `view 0` must be a rigid motion, but mirrors",
        ),
        (
            with("focal", npy("<f8", "(2,)", &[0; 16])),
            "`focal` must be one number, got 2",
        ),
        (
            with("focal", npy("<f8", "()", &0f64.to_le_bytes())),
            "`focal` must be positive",
        ),
        (
            with("camera_angle_x", npy("<f8", "()", &1f64.to_le_bytes())),
            "`camera_angle_x` says",
        ),
        (
            with("times", npy("<f8", "(1,)", &[0; 8])),
            "`times` must be [2], got 1",
        ),
        (
            with(
                "times",
                npy("<f8", "(2,)", &[0.0f64, 1.5].map(f64::to_le_bytes).concat()),
            ),
            "the time of `view 1` must lie in [0, 1], got 1.5",
        ),
        (b"no zip".to_vec(), "expected an NPZ file"),
    ] {
        let error = Scene::decode_npz(Cursor::new(bytes), Path::new("a.npz"));
        let error = error.expect_err(words).to_string();
        assert!(
            error.starts_with("a.npz: ") && error.contains(words),
            "{error}"
        );
    }
}
