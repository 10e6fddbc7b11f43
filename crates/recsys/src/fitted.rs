//! A trained click model from its run folder: predictions for rows of a table, and the best candidates for a user.

use std::path::Path;

use densely_core::{Error, Result, Tensors, seeded};
use densely_data::{Batches, RowBatch};
use densely_train::calibration;
use densely_train::run::Kept;
use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::feature_map::{FeatureMap, Layout};
use crate::fit::{Pipeline, probabilities_of};
use crate::metrics::{Groups, Scores, read_clicks};
use crate::models::CtrModel;
use crate::network::{self, fields_of};

/// A trained model from its run folder.
#[derive(Debug)]
pub struct Fitted {
    /// Which column is which field.
    pub map: FeatureMap,
    /// From which value of the label on it is a click.
    pub click_from: Option<f64>,
    /// What logits are divided by, where the fit was asked to calibrate.
    temperature: Option<f64>,
    model: CtrModel,
    layout: Layout,
    device: Device,
}

impl Fitted {
    /// Opens the best epoch of the run in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such folder or it holds no finished epoch; [`Error::Corrupt`], [`Error::Weights`] and
    /// [`Error::Config`] for files that are damaged or do not belong together.
    pub fn open(folder: &Path, device: Device) -> Result<Self> {
        let kept = Kept::<Pipeline>::open(folder, "densely ctr")?;
        let pipeline = &kept.pipeline;
        let map = FeatureMap::from_json(&pipeline.feature_map.to_string(), &kept.path)?;
        map.check_fields(&fields_of(&pipeline.config)?)?;
        let vs = VarStore::new(device);
        // Loaded weights replace the first ones; drawing them must not disturb a training of another thread.
        let model = seeded(0, || {
            network::build(&pipeline.preset, &pipeline.config, &vs.root())
        })?;
        kept.load_weights(&vs)?;
        Ok(Self {
            layout: Layout::new(&map.fields()),
            map,
            click_from: pipeline.click_from,
            temperature: calibration::read_temperature(folder)?,
            model,
            device,
        })
    }

    /// Probabilities of a click for the rows of a batch.
    ///
    /// # Errors
    /// [`Error::Data`] naming the row and column of a value that cannot be read.
    pub fn predict(&self, rows: &RowBatch) -> Result<Vec<f64>> {
        let words = self.map.encode(rows)?.words();
        let _no_grad = tch::no_grad_guard();
        let inputs = self.layout.tensors(&words, self.device)?;
        self.probabilities(&self.model.forward(&inputs, false)?)
    }

    fn probabilities(&self, logits: &Tensor) -> Result<Vec<f64>> {
        match self.temperature {
            Some(temperature) => probabilities_of(&logits.f_div_scalar(temperature)?),
            None => probabilities_of(logits),
        }
    }

    /// Scores on a table that has the label, read in pieces of `size` rows.
    ///
    /// # Errors
    /// Those of reading and of [`Scores::new`].
    pub fn evaluate(&self, table: &Path, size: usize) -> Result<Scores> {
        let mut columns = self.map.sources();
        for name in std::iter::once(self.map.label()).chain(self.map.group()) {
            if !columns.iter().any(|other| other == name) {
                columns.push(name.to_owned());
            }
        }
        let (mut probabilities, mut clicks) = (Vec::new(), Vec::new());
        let mut groups = Groups::default();
        for rows in Batches::open(table, &columns, size)? {
            let rows = rows?;
            clicks.extend(read_clicks(&rows, self.map.label(), self.click_from)?);
            if let Some(group) = self.map.group() {
                groups.read(&rows, group)?;
            }
            probabilities.extend(self.predict(&rows)?);
        }
        let groups = self.map.group().map(|_| &*groups.codes);
        Scores::new(&probabilities, &clicks, groups)
    }

    /// The candidates of which a table of items has the columns, encoded once for any number of users.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict); [`Error::Data`] when no column is a field's.
    pub fn candidates(&self, rows: &RowBatch) -> Result<Candidates> {
        let fields = self.map.fields_in(rows);
        if fields.is_empty() {
            let reason = "no column of the candidates is one that the model was trained on";
            return Err(Error::data(&*rows.path, reason));
        }
        let words = self.map.encode_some(rows, &fields)?.words();
        Ok(Candidates {
            tensors: self.layout.some(&words, &fields, self.device)?,
            count: rows.batch.num_rows(),
            fields,
        })
    }

    /// The `top` candidates with the highest probability for the user in row `row` of `users`, the best first: place among the
    /// candidates and probability. Columns that both tables have are the candidates'.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict); [`Error::Data`] for a column that neither table has.
    pub fn rank(
        &self,
        users: &RowBatch,
        row: usize,
        candidates: &Candidates,
        top: usize,
    ) -> Result<Vec<(usize, f64)>> {
        let rest: Vec<String> = self
            .map
            .fields()
            .iter()
            .map(|field| field.name().to_owned())
            .filter(|name| !candidates.fields.contains(name))
            .collect();
        let user = RowBatch {
            path: users.path.clone(),
            batch: users.batch.slice(row, 1),
            numbers: users.numbers.get(row).copied().into_iter().collect(),
        };
        let words = self.map.encode_some(&user, &rest)?.words();
        let user = self.layout.some(&words, &rest, self.device)?;
        let logits = {
            let _no_grad = tch::no_grad_guard();
            self.model.score_candidates(&user, &candidates.tensors)?
        };
        let probabilities = self.probabilities(&logits)?;
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
        order.truncate(top);
        Ok(order
            .into_iter()
            .map(|at| (at, probabilities[at]))
            .collect())
    }
}

/// Candidates of a ranking, encoded.
#[derive(Debug)]
pub struct Candidates {
    tensors: Tensors,
    count: usize,
    /// The fields that come from the candidates.
    pub fields: Vec<String>,
}

impl Candidates {
    /// How many there are.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
