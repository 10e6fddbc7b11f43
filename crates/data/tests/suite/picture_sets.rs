//! Data sets of pictures: labels, order and names; damaged files are named; pictures come in order from several threads.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use densely_core::{Error, Result};
use densely_data::Image;
use densely_data::image::sources::{
    CifarBinary, CifarKind, Idx, InMemory, Pictures, Subset, read_classes,
};
use densely_data::image::{AnyImage, decode_ordered};

use crate::TableFile;

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn one(value: u8) -> Image<u8> {
    Image::new(1, 1, 1, vec![value]).unwrap()
}

fn first_value(image: &AnyImage) -> u8 {
    image.to_grey8().pixels()[0]
}

/// An IDX file: `sizes`, then `bytes`.
fn idx(sizes: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, sizes.len() as u8];
    file.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
    file.extend(bytes);
    file
}

#[test]
fn idx_files_are_read_and_checked() {
    let images = TableFile::new("images", &idx(&[3, 1, 2], &[1, 2, 3, 4, 5, 6]));
    let labels = TableFile::new("labels", &idx(&[3], &[0, 2, 1]));
    let set = Idx::open(&images.path, &labels.path).unwrap();
    assert_eq!(set.len(), 3);
    assert_eq!(set.classes(), names(&["0", "1", "2"]));
    assert_eq!(
        (0..4).map(|i| set.label(i)).collect::<Vec<_>>(),
        [Some(0), Some(2), Some(1), None]
    );
    let AnyImage::Eight(picture) = set.picture(1).unwrap() else {
        panic!("8 bits")
    };
    assert_eq!(
        (picture.width(), picture.height(), picture.pixels()),
        (2, 1, &[3, 4][..])
    );
    assert!(set.name(1).ends_with("images, picture 2"));
    assert!(
        set.picture(3)
            .unwrap_err()
            .to_string()
            .contains("there are 3 pictures, numbered from 0, and no number 3")
    );
    let error = set.clone().with_classes(names(&["a", "b"])).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("images, row 2: label 2 has no name among the 2 classes; give all names"),
        "{error}"
    );
    assert_eq!(
        set.with_classes(names(&["a", "b", "c"])).unwrap().classes()[2],
        "c"
    );
    let unlabelled = Idx::open_unlabelled(&images.path).unwrap();
    assert!(unlabelled.classes().is_empty() && unlabelled.label(0).is_none());
    let two = TableFile::new("two", &idx(&[2], &[0, 1]));
    let error = Idx::open(&images.path, &two.path).unwrap_err().to_string();
    assert!(error.contains("2 labels for the 3 pictures of "), "{error}");
}

#[test]
fn every_field_of_an_idx_header_is_checked() {
    let good = idx(&[3, 1, 2], &[1, 2, 3, 4, 5, 6]);
    let mut other_type = good.clone();
    other_type[2] = 9;
    let cases = [
        (good[..15].to_vec(), "it ends within the header"),
        (
            good[..3].to_vec(),
            "expected an IDX file of bytes with 3 dimensions",
        ),
        (
            Vec::new(),
            "expected an IDX file of bytes with 3 dimensions",
        ),
        (
            other_type,
            "expected an IDX file of bytes with 3 dimensions",
        ),
        (
            idx(&[6], &[1; 6]),
            "expected an IDX file of bytes with 3 dimensions",
        ),
        (idx(&[3, 0, 2], &[]), "its header says [3, 0, 2]: nothing"),
        (idx(&[3, 1, 2], &[1; 7]), "but there are more than 6 bytes"),
        (
            idx(&[9, 1, 2], &[1; 6]),
            "but there are fewer than 18 bytes",
        ),
        (idx(&[u32::MAX; 3], &[1; 6]), "more than the file can hold"),
        (
            idx(&[60_000, 28, 28], &[1; 6]),
            "more than the file can hold",
        ),
    ];
    for (bytes, expected) in cases {
        let file = TableFile::new("images", &bytes);
        let error = Idx::open_unlabelled(&file.path).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[cfg(feature = "image")]
#[test]
fn gzipped_idx_files_are_read_and_truncated_ones_refused() {
    use std::io::Write;
    let zip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let noise: Vec<u8> = (0..600u32).map(|i| (i * i % 251) as u8).collect();
    let zipped = zip(&idx(&[6, 10, 10], &noise));
    let file = TableFile::new("images.gz", &zipped);
    let set = Idx::open_unlabelled(&file.path).unwrap();
    assert_eq!(set.len(), 6);
    assert_eq!(first_value(&set.picture(1).unwrap()), noise[100]);
    for end in [1, 5, 15, zipped.len() / 2, zipped.len() - 1] {
        let file = TableFile::new("images.gz", &zipped[..end]);
        let error = Idx::open_unlabelled(&file.path).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{end}: {error}");
    }
    let bomb = TableFile::new("images.gz", &zip(&idx(&[60_000, 280, 280], &[0; 100])));
    let error = Idx::open_unlabelled(&bomb.path).unwrap_err().to_string();
    assert!(error.contains("more than the file can hold"), "{error}");
}

#[test]
fn cifar_records_are_read_and_checked() {
    let record = |heads: &[u8], first: u8| {
        let mut bytes = heads.to_vec();
        bytes.extend((0..3072).map(|at| first + (at / 1024) as u8));
        bytes
    };
    let a = TableFile::new("a.bin", &[record(&[3], 10), record(&[9], 20)].concat());
    let b = TableFile::new("b.bin", &record(&[0], 30));
    let set = CifarBinary::open(&[&a.path, &b.path], CifarKind::Cifar10).unwrap();
    assert_eq!(set.len(), 3);
    let labels: Vec<_> = (0..3)
        .map(|i| set.classes()[set.label(i).unwrap()].clone())
        .collect();
    assert_eq!(labels, ["cat", "truck", "airplane"]);
    let picture = set.picture(2).unwrap().into_rgb8();
    assert_eq!(
        (picture.width(), picture.height(), &picture.pixels()[..6]),
        (32, 32, &[30, 31, 32, 30, 31, 32][..])
    );
    assert!(set.name(1).ends_with("a.bin, picture 2") && set.name(2).ends_with("b.bin, picture 1"));

    let c = TableFile::new("c.bin", &record(&[19, 99], 1));
    for (fine, label, classes) in [(true, 99, 100), (false, 19, 20)] {
        let set = CifarBinary::open(&[&c.path], CifarKind::Cifar100 { fine }).unwrap();
        assert_eq!((set.label(0), set.classes().len()), (Some(label), classes));
    }
    let fail = |path: &Path, kind| CifarBinary::open(&[path], kind).unwrap_err().to_string();
    assert!(
        fail(&c.path, CifarKind::Cifar10)
            .contains("expected records of 3073 bytes, got 3074 bytes")
    );
    let d = TableFile::new("d.bin", &record(&[10], 1));
    assert!(
        fail(&d.path, CifarKind::Cifar10)
            .ends_with("picture 1 has label 10, expected less than 10")
    );
    let e = TableFile::new("e.bin", &record(&[20, 5], 1));
    assert!(fail(&e.path, CifarKind::Cifar100 { fine: true }).contains("label 20"));
    let none: [&Path; 0] = [];
    assert!(CifarBinary::open(&none, CifarKind::Cifar10).is_err());
}

#[test]
fn class_names_come_from_a_text_file() {
    let file = TableFile::new("c.txt", "\u{feff}cat\r\nsea lion\r\n\r\n".as_bytes());
    assert_eq!(read_classes(&file.path).unwrap(), ["cat", "sea lion"]);
    for (text, expected) in [
        ("", "holds no class name; expected one in a line"),
        ("a\n\nb\n", "row 2: an empty line has no class name"),
        (
            "a\nb\na\n",
            "row 3: the class `a` stands here a second time",
        ),
    ] {
        let file = TableFile::new("c.txt", text.as_bytes());
        let error = read_classes(&file.path).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
    }
}

#[test]
fn memory_and_subsets_keep_labels_and_classes() {
    let images = || (0..4).map(one).collect::<Vec<_>>();
    let set = InMemory::new(images(), &[0, 1, 0, 1], names(&["a", "b"])).unwrap();
    assert!(InMemory::new(images(), &[0, 1], names(&["a", "b"])).is_err());
    assert!(InMemory::new(images(), &[0, 1, 2, 0], names(&["a", "b"])).is_err());
    let set: Arc<dyn Pictures> = Arc::new(set);
    assert!(Subset::new(Arc::clone(&set), vec![4]).is_err());
    let part = Subset::new(set, vec![3, 0]).unwrap();
    assert_eq!(
        (part.len(), part.label(0), part.label(1), part.label(2)),
        (2, Some(1), Some(0), None)
    );
    assert_eq!(first_value(&part.picture(0).unwrap()), 3);
    assert_eq!(
        (part.name(0).as_str(), part.classes()),
        ("picture 4", &names(&["a", "b"])[..])
    );
    assert!(part.picture(2).is_err());
}

/// 40 pictures of which number 7 cannot be read and number 9 makes the reader panic.
struct Faulty {
    read: AtomicUsize,
}

impl Pictures for Faulty {
    fn len(&self) -> usize {
        40
    }

    fn picture(&self, i: usize) -> Result<AnyImage> {
        self.read.fetch_add(1, Ordering::SeqCst);
        match i {
            7 => Err(Error::corrupt("7.png", "damaged")),
            9 => panic!("a broken decoder"),
            _ => Ok(one(i as u8).into()),
        }
    }

    fn label(&self, _: usize) -> Option<usize> {
        None
    }

    fn name(&self, i: usize) -> String {
        i.to_string()
    }

    fn classes(&self) -> &[String] {
        &[]
    }
}

#[test]
fn pictures_come_in_order_and_bad_ones_as_errors() {
    let indices: Vec<usize> = (0..40).rev().chain([3, 3]).collect();
    for workers in [0, 1, 3, 100] {
        let source = Arc::new(Faulty {
            read: AtomicUsize::new(0),
        });
        let work = |i: usize, image: AnyImage| {
            assert_ne!(i, 11, "a broken transform");
            Ok(first_value(&image))
        };
        let results: Vec<_> = decode_ordered(source, &indices, workers, work).collect();
        let order: Vec<usize> = results.iter().map(|(i, _)| *i).collect();
        assert_eq!(order, indices);
        for (i, result) in results {
            match (i, result) {
                (7, Err(error)) => assert!(error.to_string().starts_with("7.png")),
                (9 | 11, Err(error)) => assert!(
                    error
                        .to_string()
                        .contains(&format!("picture {i} panicked: "))
                        && error.to_string().contains("a broken"),
                    "{error}"
                ),
                (i, result) => assert_eq!(usize::from(result.unwrap()), i),
            }
        }
    }
}

#[test]
fn dropping_early_stops_the_threads() {
    let source = Arc::new(Faulty {
        read: AtomicUsize::new(0),
    });
    let indices = [1; 1000];
    let kept = Arc::clone(&source);
    let mut results = decode_ordered(source, &indices, 2, |_, image| Ok(image));
    assert!(results.next().is_some());
    drop(results);
    // The threads are gone: nobody else holds the source, and few pictures were read.
    assert_eq!(Arc::strong_count(&kept), 1);
    assert!(kept.read.load(Ordering::SeqCst) < 20);
}

#[cfg(feature = "image")]
mod folders {
    use std::fs;

    use densely_data::image::sources::{Folder, FolderOptions};
    use densely_data::image::write;

    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (value, file) in files.iter().enumerate() {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match path.extension().and_then(|ending| ending.to_str()) {
                Some("png") => write(&path, &one(value as u8)).unwrap(),
                _ => fs::write(&path, b"text").unwrap(),
            }
        }
        root
    }

    /// Folders before the file and after the root.
    fn listed(set: &Folder, root: &Path) -> Vec<String> {
        let short = |i| {
            set.name(i)
                .strip_prefix(&format!("{}/", root.display()))
                .unwrap()
                .to_owned()
        };
        (0..set.len()).map(short).collect()
    }

    #[test]
    fn class_folders_are_read_in_the_order_of_image_folder() {
        let root = folder(&[
            "b/2.png",
            "b/10.png",
            "a/z.png",
            "a/in/1.png",
            "a/in-b/1.png",
            "a/in/deep/1.png",
            "a/notes.txt",
            "a/.hidden.png",
            ".git/x.png",
            "beside.png",
            "a/.cache/x.png",
            "B/bad.JPG",
        ]);
        let set = Folder::open(root.path()).unwrap();
        assert_eq!(set.classes(), names(&["B", "a", "b"]));
        let expected = [
            "B/bad.JPG",
            "a/z.png",
            "a/in/1.png",
            "a/in-b/1.png",
            "a/in/deep/1.png",
            "b/10.png",
            "b/2.png",
        ];
        assert_eq!(listed(&set, root.path()), expected);
        let labels: Vec<_> = (0..set.len()).map(|i| set.label(i).unwrap()).collect();
        assert_eq!(labels, [0, 1, 1, 1, 1, 2, 2]);
        assert_eq!(first_value(&set.picture(6).unwrap()), 0);
        let error = set.picture(0).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "B/bad.JPG: holds text, not a picture; expected JPEG, PNG, WebP, GIF, BMP or TIFF"
            ),
            "{error}"
        );
        assert!(set.clone().with_classes(names(&["x"])).is_err());
        assert_eq!(
            set.with_classes(names(&["x", "y", "z"])).unwrap().classes()[0],
            "x"
        );
    }

    #[test]
    fn folders_without_pictures_are_named() {
        let root = folder(&["a/1.png", "b/notes.txt", "c/notes.txt"]);
        let error = Folder::open(root.path()).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "2 class folders have no picture: `b`, `c`; remove them or allow empty classes"
            ),
            "{error}"
        );
        let mut options = FolderOptions {
            allow_empty: true,
            ..FolderOptions::default()
        };
        let set = Folder::open_with(root.path(), &options).unwrap();
        assert_eq!((set.len(), set.classes().len()), (1, 3));
        options.classes = names(&["c", "b", "nowhere", "a"]);
        let set = Folder::open_with(root.path(), &options).unwrap();
        assert_eq!(set.label(0), Some(3));
        options.classes = names(&["c", "a"]);
        let error = Folder::open_with(root.path(), &options)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the folder `b` is none of the 2 classes"),
            "{error}"
        );

        let root = folder(&["notes.txt"]);
        let error = Folder::open(root.path()).unwrap_err().to_string();
        assert!(
            error
                .contains("no picture is here; expected class folders with files that end in .jpg"),
            "{error}"
        );
        let root = folder(&["a/notes.txt", "b/notes.txt"]);
        let error = Folder::open(root.path()).unwrap_err().to_string();
        assert!(error.contains("no picture is in its 2 folders"), "{error}");
        assert!(matches!(
            Folder::open(Path::new("/no/such")),
            Err(Error::Io { .. })
        ));
    }

    #[test]
    fn a_folder_of_pictures_has_no_labels() {
        let root = folder(&["b.png", "a.png", "notes.txt", ".cache/x.png"]);
        let set = Folder::open(root.path()).unwrap();
        assert_eq!(listed(&set, root.path()), ["a.png", "b.png"]);
        assert!(set.label(0).is_none() && set.classes().is_empty());
    }

    #[test]
    fn classes_that_folders_cannot_have_are_named() {
        let (flat, sorted) = (folder(&["a.png"]), folder(&["a/1.png", "b/2.png"]));
        let open = |root: &tempfile::TempDir, classes: &[&str]| {
            let options = FolderOptions {
                classes: names(classes),
                ..FolderOptions::default()
            };
            Folder::open_with(root.path(), &options)
        };
        assert!(open(&sorted, &["b", "a"]).is_ok());
        let error = open(&sorted, &["a", "b", "a"]).unwrap_err().to_string();
        assert!(error.ends_with("the class `a` is given twice"), "{error}");
        let error = open(&flat, &["a", "b"]).unwrap_err().to_string();
        assert!(
            error.ends_with("holds pictures and no class folder; expected folders such as `a`"),
            "{error}"
        );
    }

    // Other systems have no such names.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_class_folder_whose_name_is_no_text_is_named() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let root = folder(&["a/1.png"]);
        let odd = root.path().join(OsStr::from_bytes(b"b\xff"));
        fs::create_dir(&odd).unwrap();
        write(&odd.join("2.png"), &one(2)).unwrap();
        let given: [&[&str]; 2] = [&[], &["a", "b\u{fffd}"]];
        for classes in given {
            let options = FolderOptions {
                classes: names(classes),
                allow_empty: true,
                ..FolderOptions::default()
            };
            let error = Folder::open_with(root.path(), &options).unwrap_err();
            assert!(
                error
                    .to_string()
                    .ends_with("the name of a class folder must be UTF-8; rename it"),
                "{error}"
            );
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_in_a_circle_end() {
        let root = folder(&["a/1.png", "b/2.png"]);
        let link = |to: &str, from: &str| {
            std::os::unix::fs::symlink(root.path().join(to), root.path().join(from)).unwrap();
        };
        link("a", "a/again");
        link("", "b/root");
        let set = Folder::open(root.path()).unwrap();
        // The whole root lies in `b` through a link; each folder counts once.
        assert_eq!(
            listed(&set, root.path()),
            ["a/1.png", "b/2.png", "b/root/a/1.png"]
        );
    }
}

#[cfg(all(feature = "image", feature = "parquet"))]
mod parquet_files {
    use std::fs::File;
    use std::path::PathBuf;

    use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
    use arrow_schema::{DataType, Field};
    use densely_data::image::encode_png;
    use densely_data::image::sources::ParquetPictures;
    use parquet::arrow::ArrowWriter;
    use parquet::file::metadata::KeyValue;

    use super::*;

    fn write(
        columns: Vec<(&str, ArrayRef)>,
        metadata: Option<&str>,
    ) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.parquet");
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let file = File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        if let Some(text) = metadata {
            writer.append_key_value_metadata(KeyValue::new(
                "huggingface".to_owned(),
                text.to_owned(),
            ));
        }
        writer.close().unwrap();
        (folder, path)
    }

    fn files(count: usize) -> Vec<Vec<u8>> {
        (0..count)
            .map(|i| encode_png(&one((i % 256) as u8)).unwrap())
            .collect()
    }

    fn plain(files: &[Vec<u8>]) -> ArrayRef {
        Arc::new(BinaryArray::from_iter_values(files))
    }

    /// As Hugging Face has them.
    fn with_paths(files: &[Option<&[u8]>]) -> ArrayRef {
        let bytes: ArrayRef = Arc::new(files.iter().copied().collect::<BinaryArray>());
        let paths: ArrayRef =
            Arc::new(files.iter().map(|_| Some("a.png")).collect::<StringArray>());
        let field = |name: &str, kind| Arc::new(Field::new(name, kind, true));
        Arc::new(StructArray::from(vec![
            (field("bytes", DataType::Binary), bytes),
            (field("path", DataType::Utf8), paths),
        ]))
    }

    fn labels(list: &[Option<i64>]) -> ArrayRef {
        Arc::new(list.iter().copied().collect::<Int64Array>())
    }

    #[test]
    fn structs_and_plain_columns_are_read() {
        let files = files(600);
        let numbers: Vec<Option<i64>> = (0..600).map(|i| Some(i % 3)).collect();
        let json = r#"{"info": {"features": {"label": {"names": ["x", "y", "z"], "_type": "ClassLabel"}}}}"#;
        let optional: Vec<Option<&[u8]>> = files.iter().map(|file| Some(file.as_slice())).collect();
        let (_a, named) = write(
            vec![("label", labels(&numbers)), ("img", with_paths(&optional))],
            Some(json),
        );
        let set = ParquetPictures::open(&named, "img", Some("label")).unwrap();
        assert_eq!(
            (set.len(), set.classes()),
            (600, &names(&["x", "y", "z"])[..])
        );
        for i in [0, 255, 256, 599] {
            assert_eq!(usize::from(first_value(&set.picture(i).unwrap())), i % 256);
            assert_eq!(set.label(i), Some(i % 3));
            assert!(
                set.name(i)
                    .ends_with(&format!("set.parquet, picture {}", i + 1))
            );
        }
        assert!(set.picture(600).is_err() && set.label(600).is_none());

        let (_b, bare) = write(vec![("img", plain(&files[..2]))], None);
        let set = ParquetPictures::open_all(&[&bare, &bare], "img", None).unwrap();
        assert_eq!((set.len(), set.label(0), set.classes().len()), (4, None, 0));
        assert_eq!(first_value(&set.picture(3).unwrap()), 1);
        assert!(set.name(3).ends_with("set.parquet, picture 2"));
    }

    #[test]
    fn files_of_one_set_name_its_classes_alike() {
        let file = |names: Option<&str>| {
            let json = names.map(|names| {
                format!(r#"{{"info": {{"features": {{"label": {{"names": [{names}]}}}}}}}}"#)
            });
            let columns = vec![
                ("img", plain(&files(2))),
                ("label", labels(&[Some(0), Some(1)])),
            ];
            write(columns, json.as_deref())
        };
        let (_a, first) = file(Some(r#""x", "y""#));
        let open = |second: &Path| {
            ParquetPictures::open_all(&[first.as_path(), second], "img", Some("label"))
        };
        let (_b, without) = file(None);
        for second in [&first, &without] {
            let set = open(second).unwrap();
            assert_eq!((set.len(), set.classes()), (4, &names(&["x", "y"])[..]));
        }
        let (_c, other) = file(Some(r#""x", "z""#));
        let error = open(&other).unwrap_err().to_string();
        let expected = "calls class 1 `z`, a file before it `y`; give files of one data set";
        assert!(error.ends_with(expected), "{error}");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let files = files(2);
        let good = || plain(&files);
        let fail = |columns: Vec<(&str, ArrayRef)>, metadata| {
            let (_folder, path) = write(columns, metadata);
            let error = ParquetPictures::open(&path, "img", Some("label"))
                .unwrap_err()
                .to_string();
            error.split_once("set.parquet").unwrap().1.to_owned()
        };
        let two = || labels(&[Some(0), Some(1)]);
        assert_eq!(
            fail(vec![("image", good()), ("label", two())], None),
            ", column `img`: no such column; there are `image`, `label`"
        );
        assert!(fail(vec![("img", two()), ("label", two())], None).contains(
            "expected the bytes of pictures, or a struct with the field `bytes`, got Int64"
        ));
        assert_eq!(
            fail(
                vec![("img", good()), ("label", labels(&[Some(0), None]))],
                None
            ),
            ", row 2, column `label`: no label"
        );
        assert!(
            fail(
                vec![("img", good()), ("label", labels(&[Some(0), Some(-1)]))],
                None
            )
            .contains("row 2, column `label`: expected a label from 0")
        );
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
        assert!(
            fail(vec![("img", good()), ("label", texts)], None)
                .contains("expected whole numbers as labels, got Utf8")
        );
        let gap = with_paths(&[Some(&files[0]), None]);
        assert!(
            fail(vec![("img", gap), ("label", two())], None)
                .contains("row 2, column `img`: no bytes; pictures must lie in the file")
        );
        let json = r#"{"info": {"features": {"label": {"names": ["x"]}}}}"#;
        assert!(
            fail(vec![("img", good()), ("label", two())], Some(json))
                .contains("label 1 has no name among the 1 classes")
        );
        let nothing = vec![("img", plain(&[])), ("label", labels(&[]))];
        assert_eq!(
            fail(nothing, None),
            ": holds no row; give a file with pictures"
        );
        let text = TableFile::new("set.parquet", b"text");
        let error = ParquetPictures::open(&text.path, "img", None).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        let (_folder, path) = write(vec![("img", plain(&[b"text".to_vec()]))], None);
        let set = ParquetPictures::open(&path, "img", None).unwrap();
        let error = set.picture(0).unwrap_err().to_string();
        assert!(
            error.contains("set.parquet, picture 1: holds text"),
            "{error}"
        );
    }
}
