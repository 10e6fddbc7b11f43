//! Feature matrices: in memory, or, when they would not fit, in a file that is mapped and read page by page.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use densely_core::{Error, Result};
use tch::kind::Element;
use tch::{Device, Tensor};

/// A matrix `[rows, columns]` that is filled column by column.
#[derive(Debug)]
pub(crate) struct Matrix<T> {
    rows: usize,
    columns: Vec<Tensor>,
    file: Option<Spill>,
    kind: std::marker::PhantomData<T>,
}

#[derive(Debug)]
struct Spill {
    path: PathBuf,
    writer: BufWriter<File>,
    columns: usize,
}

/// A cell's bytes in a file.
pub(crate) trait Cell: Element + Copy {
    fn bytes(self) -> [u8; 4];
}

impl Cell for f32 {
    fn bytes(self) -> [u8; 4] {
        self.to_ne_bytes()
    }
}

impl Cell for i32 {
    fn bytes(self) -> [u8; 4] {
        self.to_ne_bytes()
    }
}

impl<T: Cell> Matrix<T> {
    /// A matrix of `rows` rows; `in_file` keeps it in a file in the temporary folder.
    pub(crate) fn new(rows: usize, in_file: bool) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let file = in_file.then(|| {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("densely-features-{}-{count}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let writer = BufWriter::new(File::create(&path).map_err(Error::io(&path))?);
            Ok::<_, Error>(Spill {
                path,
                writer,
                columns: 0,
            })
        });
        Ok(Self {
            rows,
            columns: Vec::new(),
            file: file.transpose()?,
            kind: std::marker::PhantomData,
        })
    }

    /// Adds a column of as many values as there are rows.
    pub(crate) fn push(&mut self, values: &[T]) -> Result<()> {
        let Some(file) = &mut self.file else {
            self.columns.push(Tensor::from_slice(values));
            return Ok(());
        };
        file.columns += 1;
        let mut put = |value: &T| file.writer.write_all(&value.bytes());
        values
            .iter()
            .try_for_each(&mut put)
            .map_err(Error::io(&file.path))
    }

    /// The matrix; `None` when it has no column.
    pub(crate) fn finish(mut self) -> Result<Option<Tensor>> {
        let Some(file) = &mut self.file else {
            let columns = std::mem::take(&mut self.columns);
            return Ok((!columns.is_empty()).then(|| Tensor::stack(&columns, 1)));
        };
        if file.columns == 0 || self.rows == 0 {
            return Ok(None);
        }
        file.writer.flush().map_err(Error::io(&file.path))?;
        let path = file
            .path
            .to_str()
            .ok_or_else(|| Error::config("TMPDIR", "the temporary folder's name must be UTF-8"))?;
        let cells = (self.rows * file.columns) as i64;
        let cells = Tensor::f_from_file(path, false, cells, (T::KIND, Device::Cpu))?;
        Ok(Some(
            cells
                .view([file.columns as i64, self.rows as i64])
                .transpose(0, 1),
        ))
    }
}

/// The name goes at once; the bytes stay until the last tensor that maps them is gone.
impl Drop for Spill {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("{}: {error}", self.path.display());
        }
    }
}
