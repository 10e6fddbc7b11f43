//! Files of raw pixels: IDX (MNIST and its likes) and CIFAR's.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};

use super::{AnyImage, Labels, Pictures, numbered, out_of_range};
use crate::image::Image;

/// Pictures of one size, the values of each side by side.
#[derive(Debug, Clone)]
struct Raw {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
}

impl Raw {
    fn size(&self) -> usize {
        self.width * self.height * self.channels
    }

    fn len(&self) -> usize {
        self.pixels.len() / self.size()
    }

    fn picture(&self, i: usize) -> Result<AnyImage> {
        let pixels = self.pixels.chunks_exact(self.size()).nth(i);
        let pixels = pixels.ok_or_else(|| out_of_range(i, self.len()))?;
        Image::new(self.width, self.height, self.channels, pixels.to_vec()).map(AnyImage::Eight)
    }
}

/// Grey pictures of an IDX file, plain or gzipped, as MNIST, Fashion-MNIST, KMNIST and EMNIST have them.
#[derive(Debug, Clone)]
pub struct Idx {
    path: PathBuf,
    raw: Raw,
    labels: Labels,
}

impl Idx {
    /// Reads the pictures of one file and the labels of another. Classes are named by number; see [`with_classes`](Self::with_classes).
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read; [`Error::Corrupt`] when its header and its length do not fit or it is
    /// another kind of file; [`Error::Data`] when there are more or fewer labels than pictures;
    /// [`Error::Unsupported`] for a gzipped file without the feature `image`.
    pub fn open(images: &Path, labels: &Path) -> Result<Self> {
        let pictures = Self::open_unlabelled(images)?;
        let ([count], values) = read_idx(labels)?;
        if count != pictures.raw.len() {
            let have = pictures.raw.len();
            let reason = format!(
                "{count} labels for the {have} pictures of {}; give the files of one set",
                images.display()
            );
            return Err(Error::data(labels, reason));
        }
        let labels = Labels::numbered(values.into_iter().map(u32::from).collect());
        Ok(Self { labels, ..pictures })
    }

    /// Reads the pictures of a file, without labels.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_unlabelled(images: &Path) -> Result<Self> {
        let ([_, height, width], pixels) = read_idx(images)?;
        Ok(Self {
            path: images.to_owned(),
            raw: Raw {
                width,
                height,
                channels: 1,
                pixels,
            },
            labels: Labels::default(),
        })
    }

    /// The same with names for the classes, in the order of the labels.
    ///
    /// # Errors
    /// [`Error::Data`] when a label has no name.
    pub fn with_classes(self, classes: Vec<String>) -> Result<Self> {
        let labels = self.labels.named(&self.path, classes)?;
        Ok(Self { labels, ..self })
    }
}

impl Pictures for Idx {
    fn len(&self) -> usize {
        self.raw.len()
    }

    fn picture(&self, i: usize) -> Result<AnyImage> {
        self.raw.picture(i)
    }

    fn label(&self, i: usize) -> Option<usize> {
        self.labels.get(i)
    }

    fn name(&self, i: usize) -> String {
        numbered(&self.path, i).display().to_string()
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }
}

/// Sizes and bytes of an IDX file of `N` dimensions.
fn read_idx<const N: usize>(path: &Path) -> Result<([usize; N], Vec<u8>)> {
    let fail = |reason: String| Err(Error::corrupt(path, reason));
    let mut file = File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    let mut start = Vec::new();
    let two = (&mut file).take(2).read_to_end(&mut start);
    two.map_err(Error::io(path))?;
    file.seek(SeekFrom::Start(0)).map_err(Error::io(path))?;
    let zipped = start == [0x1f, 0x8b];
    let mut reader: Box<dyn Read> = if zipped {
        unzip(path, file)?
    } else {
        Box::new(file)
    };
    let mut header = Vec::new();
    take(path, &mut reader, 4 + 4 * N as u64, &mut header)?;
    if !header.starts_with(&[0, 0, 8, N as u8]) {
        let start = &header[..header.len().min(4)];
        return fail(format!(
            "expected an IDX file of bytes with {N} dimensions, which starts with [0, 0, 8, {N}], got {start:?}"
        ));
    }
    if header.len() < 4 + 4 * N {
        return fail("it ends within the header; copy or download it again".to_owned());
    }
    let (words, _) = header[4..].as_chunks::<4>();
    let mut sizes = [0; N];
    for (size, word) in sizes.iter_mut().zip(words) {
        *size = u32::from_be_bytes(*word) as usize;
    }
    let total = sizes
        .iter()
        .try_fold(1u64, |n, size| n.checked_mul(*size as u64));
    // Deflate makes at most 1032 bytes of one.
    let most = length.saturating_mul(if zipped { 1032 } else { 1 });
    match total {
        Some(0) => return fail(format!("its header says {sizes:?}: nothing")),
        Some(total) if total <= most => {
            let mut bytes = Vec::new();
            take(path, &mut reader, total + 1, &mut bytes)?;
            if bytes.len() as u64 == total {
                return Ok((sizes, bytes));
            }
            let more = if bytes.len() as u64 > total {
                "more"
            } else {
                "fewer"
            };
            return fail(format!(
                "its header says {sizes:?}, but there are {more} than {total} bytes; copy or download it again"
            ));
        }
        _ => {}
    }
    fail(format!(
        "its header says {sizes:?}, more than the file can hold; copy or download it again"
    ))
}

/// Up to `count` bytes behind `bytes`.
fn take(path: &Path, reader: &mut dyn Read, count: u64, bytes: &mut Vec<u8>) -> Result<()> {
    use std::io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    match reader.take(count).read_to_end(bytes) {
        Err(e) if matches!(e.kind(), InvalidData | InvalidInput | UnexpectedEof) => {
            let reason = format!("it cannot be unzipped ({e}); copy or download it again");
            Err(Error::corrupt(path, reason))
        }
        read => read.map(|_| ()).map_err(Error::io(path)),
    }
}

#[cfg(feature = "image")]
#[expect(clippy::unnecessary_wraps, reason = "fails without the feature")]
fn unzip(_: &Path, file: File) -> Result<Box<dyn Read>> {
    let buffered = std::io::BufReader::new(file);
    Ok(Box::new(flate2::bufread::MultiGzDecoder::new(buffered)))
}

#[cfg(not(feature = "image"))]
fn unzip(path: &Path, _: File) -> Result<Box<dyn Read>> {
    Err(Error::Unsupported {
        what: format!("unzipping `{}`", path.display()),
        hint: "build with the feature `image`, or unzip the file".to_owned(),
    })
}

/// Which of the two data sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CifarKind {
    /// 10 classes.
    Cifar10,
    /// 100 classes in 20 groups.
    Cifar100 {
        /// Whether labels are the 100 classes rather than the 20 groups.
        fine: bool,
    },
}

/// Names of CIFAR-10's classes, in the order of the labels.
const CIFAR10: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

/// Pictures of the "binary version" of CIFAR-10 or CIFAR-100 (Krizhevsky 2009): a record is the label (of CIFAR-100
/// the group's and the class's), then 1024 red, 1024 green and 1024 blue values of 32 × 32 pixels.
#[derive(Debug, Clone)]
pub struct CifarBinary {
    files: Vec<(PathBuf, usize)>,
    raw: Raw,
    labels: Labels,
}

impl CifarBinary {
    const SIDE: usize = 32;
    const PLANE: usize = Self::SIDE * Self::SIDE;

    /// Reads `files` one behind the other, such as the five of CIFAR-10's training set. CIFAR-10's classes have their
    /// names, CIFAR-100's are numbered; see [`with_classes`](Self::with_classes).
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read; [`Error::Corrupt`] when its length is no multiple of a record's, or a
    /// label is too large; [`Error::Config`] when there is no file.
    pub fn open<P: AsRef<Path>>(files: &[P], kind: CifarKind) -> Result<Self> {
        let (heads, chosen, limits): (usize, usize, &[u8]) = match kind {
            CifarKind::Cifar10 => (1, 0, &[10]),
            CifarKind::Cifar100 { fine } => (2, usize::from(fine), &[20, 100]),
        };
        let record = heads + 3 * Self::PLANE;
        let (mut pixels, mut labels, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for path in files.iter().map(AsRef::as_ref) {
            let bytes = std::fs::read(path).map_err(Error::io(path))?;
            if bytes.is_empty() || bytes.len() % record != 0 {
                let reason = format!(
                    "expected records of {record} bytes, got {} bytes; give a file of the binary version, unpacked",
                    bytes.len()
                );
                return Err(Error::corrupt(path, reason));
            }
            pixels.reserve(bytes.len());
            for (row, record) in bytes.chunks_exact(record).enumerate() {
                for (label, limit) in record.iter().zip(limits) {
                    if label >= limit {
                        let reason = format!(
                            "picture {} has label {label}, expected less than {limit}",
                            row + 1
                        );
                        return Err(Error::corrupt(path, reason));
                    }
                }
                labels.push(u32::from(record[chosen]));
                let planes = &record[heads..];
                for at in 0..Self::PLANE {
                    pixels.extend([0, 1, 2].map(|c| planes[c * Self::PLANE + at]));
                }
            }
            ends.push((path.to_owned(), labels.len()));
        }
        if ends.is_empty() {
            return Err(Error::config("files", "expected at least one file"));
        }
        let classes = match kind {
            CifarKind::Cifar10 => CIFAR10.map(str::to_owned).to_vec(),
            CifarKind::Cifar100 { .. } => {
                (0..limits[chosen]).map(|class| class.to_string()).collect()
            }
        };
        Ok(Self {
            files: ends,
            raw: Raw {
                width: Self::SIDE,
                height: Self::SIDE,
                channels: 3,
                pixels,
            },
            labels: Labels { labels, classes },
        })
    }

    /// The same with other names for the classes, in the order of the labels, such as those of `fine_label_names.txt`.
    ///
    /// # Errors
    /// [`Error::Data`] when a label has no name.
    pub fn with_classes(self, classes: Vec<String>) -> Result<Self> {
        let labels = self.labels.named(Path::new(""), classes)?;
        Ok(Self { labels, ..self })
    }
}

impl Pictures for CifarBinary {
    fn len(&self) -> usize {
        self.raw.len()
    }

    fn picture(&self, i: usize) -> Result<AnyImage> {
        self.raw.picture(i)
    }

    fn label(&self, i: usize) -> Option<usize> {
        self.labels.get(i)
    }

    fn name(&self, i: usize) -> String {
        let at = self.files.partition_point(|(_, end)| *end <= i);
        let first = at.checked_sub(1).map_or(0, |before| self.files[before].1);
        match self.files.get(at) {
            Some((path, _)) => numbered(path, i - first).display().to_string(),
            None => format!("picture {}", i + 1),
        }
    }

    fn classes(&self) -> &[String] {
        &self.labels.classes
    }
}
