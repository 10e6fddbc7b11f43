//! Click models at the sizes of public benchmarks; the Python side, `FuxiCTR`, is `peers/recsys.py`.
//!
//! Both modes of training are measured against the same Python, which has only the dense one: rows named `…-lazy` are another algorithm.
//! In the row `din-candidates` all rows are of one user: ours are scored at once, the package's one by one, since it has no other way to use
//! that.

use densely_core::{Result, Tensors, nn, seeded, weights};
use densely_recsys::optim::{Mode, OptimConfig, Optimizer};
use densely_recsys::{CtrConfig, CtrModel, DinConfig, Field, FinalMlpConfig};
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor};

use crate::{About, Phase, Work, Workload, autocast};

/// A click model, and how its tables are trained.
#[derive(Debug)]
pub(crate) struct Clicks {
    name: &'static str,
    model: &'static str,
    mode: Mode,
    embedding_l2: f64,
    config: fn() -> CtrConfig,
    cases: &'static [(Phase, i64)],
}

const TRAIN: &[(Phase, i64)] = &[(Phase::Train, 4096)];
const BOTH: &[(Phase, i64)] = &[(Phase::Train, 4096), (Phase::Infer, 4096)];
const DIN: &[(Phase, i64)] = &[(Phase::Train, 64), (Phase::Infer, 64)];
const CANDIDATES: &[(Phase, i64)] = &[(Phase::Infer, 1000)];

pub(crate) static WORKLOADS: [Clicks; 6] = [
    Clicks {
        name: "finalmlp-frappe",
        model: "finalmlp",
        mode: Mode::Dense,
        embedding_l2: 0.05,
        config: || CtrConfig::FinalMlp(FinalMlpConfig::default()),
        cases: BOTH,
    },
    Clicks {
        name: "finalmlp-frappe-lazy",
        model: "finalmlp",
        mode: Mode::Lazy,
        embedding_l2: 0.05,
        config: || CtrConfig::FinalMlp(FinalMlpConfig::default()),
        cases: TRAIN,
    },
    Clicks {
        name: "finalmlp-criteo",
        model: "finalmlp",
        mode: Mode::Dense,
        embedding_l2: 1e-5,
        config: criteo,
        cases: BOTH,
    },
    Clicks {
        name: "finalmlp-criteo-lazy",
        model: "finalmlp",
        mode: Mode::Lazy,
        embedding_l2: 1e-5,
        config: criteo,
        cases: TRAIN,
    },
    Clicks {
        name: "din-amazon",
        model: "din",
        mode: Mode::Dense,
        embedding_l2: 0.005,
        config: || CtrConfig::Din(DinConfig::default()),
        cases: DIN,
    },
    Clicks {
        name: "din-candidates",
        model: "din",
        mode: Mode::Dense,
        embedding_l2: 0.005,
        config: || CtrConfig::Din(DinConfig::default()),
        cases: CANDIDATES,
    },
];

/// `Criteo_x1`: 13 numbers and 26 categories.
fn criteo() -> CtrConfig {
    let numbers: Vec<Field> = (1..=13).map(|i| Field::numeric(&format!("I{i}"))).collect();
    let sizes = [
        1462, 560, 413_424, 248_543, 307, 23, 12_192, 635, 5, 54_712, 5350, 409_749, 3182, 29,
        12_500, 365_811, 12, 4934, 2096, 6, 397_981, 20, 17, 88_608, 98, 64_073,
    ];
    let categories = sizes
        .iter()
        .zip(1..)
        .map(|(size, i)| Field::categorical(&format!("C{i}"), *size));
    let context = numbers.iter().map(|field| field.name().to_owned());
    CtrConfig::FinalMlp(FinalMlpConfig {
        fs1_context: context.collect(),
        fs2_context: vec!["C6".to_owned()],
        fields: numbers.iter().cloned().chain(categories).collect(),
        mlp1_hidden_units: vec![400; 3],
        mlp1_dropout: 0.2,
        mlp2_hidden_units: vec![1000],
        mlp2_dropout: 0.3,
        fs_hidden_units: vec![800],
        num_heads: 200,
        ..FinalMlpConfig::default()
    })
}

/// Rows of what the fields take, the same numbers as the Python side's: small ids are frequent, and histories are three quarters full.
fn inputs(fields: &[Field], rows: i64) -> Tensors {
    let ids = |size: &[i64], vocabulary: i64| {
        let share = Tensor::rand(size, tch::kind::FLOAT_CPU).pow_tensor_scalar(3);
        (share * (vocabulary - 1)).to_kind(Kind::Int64) + 1
    };
    let made = fields.iter().map(|field| {
        let xs = match field {
            Field::Numeric { .. } => Tensor::rand([rows], tch::kind::FLOAT_CPU),
            Field::Categorical { vocab_size, .. } => ids(&[rows], *vocab_size),
            Field::Sequence {
                vocab_size,
                max_len,
                ..
            } => {
                let valid = Tensor::arange(*max_len, tch::kind::INT64_CPU).lt(max_len * 3 / 4);
                ids(&[rows, *max_len], *vocab_size) * valid
            }
        };
        (field.name().to_owned(), xs)
    });
    made.collect()
}

impl Workload for Clicks {
    fn about(&self) -> About {
        About {
            name: self.name,
            model: self.model,
            peer: "recsys.py",
            cases: self.cases,
        }
    }

    fn build(&self, rows: i64, device: Device, bf16: bool) -> Result<Box<dyn Work>> {
        let config = (self.config)();
        let store = VarStore::new(device);
        let model = seeded(0, || config.build(&store.root()))?;
        nn::check_names(&store)?;
        // The same first weights as on the other side: the sorted names' turn to draw.
        seeded(0, || -> Result<()> {
            let _no_grad = tch::no_grad_guard();
            for (name, mut param) in weights::named(&store) {
                if param.requires_grad() {
                    param
                        .f_copy_(&(Tensor::f_randn(param.size(), tch::kind::FLOAT_CPU)? * 0.05))?;
                    if name.contains("embedding_layers") && param.size()[1] > 1 {
                        let _ = param.f_narrow(0, 0, 1)?.f_zero_()?;
                    }
                }
            }
            Ok(())
        })?;
        let optim = OptimConfig {
            mode: self.mode,
            embedding_l2: self.embedding_l2,
            ..OptimConfig::default()
        };
        let optimizer = Optimizer::new(&optim, &store, &model)?;
        let inputs = seeded(1, || inputs(config.fields(), rows));
        let inputs = inputs
            .into_iter()
            .map(|(name, xs)| (name, xs.to_device(device)));
        // The histories of the first row are those of the user.
        let (user, inputs): (Tensors, Tensors) =
            inputs.partition(|(_, xs)| self.cases == CANDIDATES && xs.dim() == 2);
        let user = user
            .into_iter()
            .map(|(name, xs)| (name, xs.narrow(0, 0, 1)));
        let label = Tensor::arange(rows, tch::kind::FLOAT_CPU).remainder(2.0);
        Ok(Box::new(Bench {
            model,
            optimizer,
            user: user.collect(),
            inputs,
            label: label.to_device(device),
            store,
            bf16,
        }))
    }

    fn products(&self, phase: Phase, rows: i64) -> Vec<[i64; 4]> {
        // [m, k, n] of each layer: m rows meet a matrix [k, n].
        let mut layers = Vec::new();
        let mut chain = |m: i64, inputs: i64, widths: &[i64]| {
            let mut k = inputs;
            for n in widths {
                layers.push([m, k, *n]);
                k = *n;
            }
        };
        match (self.config)() {
            CtrConfig::FinalMlp(c) => {
                chain(rows, c.width(), &c.mlp1_hidden_units);
                chain(rows, c.width(), &c.mlp2_hidden_units);
                // A gate of one field is needed for each of its ids only.
                for context in [&c.fs1_context, &c.fs2_context]
                    .into_iter()
                    .filter(|c| c.len() > 1)
                {
                    let inputs = c.embedding_dim * context.len() as i64;
                    chain(
                        rows,
                        inputs,
                        &[c.fs_hidden_units.as_slice(), &[c.width()]].concat(),
                    );
                }
            }
            CtrConfig::Din(c) => {
                let width = c.embedding_dim * c.din_target_field[0].len() as i64;
                let units = &c.attention_hidden_units;
                if self.cases == CANDIDATES {
                    // Valid steps; what the first layer makes of the keys is the same for all candidates.
                    chain(75, width, &units[..1]);
                    chain(rows * 75, width, units);
                } else {
                    // Keys and products with the query.
                    chain(rows * 100, 2 * width, units);
                }
                chain(rows, 2 * width, &c.dnn_hidden_units);
            }
        }
        let mut products = Vec::new();
        for [m, k, n] in layers {
            products.push([1, m, k, n]);
            if phase == Phase::Train {
                products.extend([[1, k, m, n], [1, m, n, k]]); // of the weight and of the input
            }
        }
        products
    }
}

#[derive(Debug)]
struct Bench {
    store: VarStore,
    model: CtrModel,
    optimizer: Optimizer,
    /// What is the same in all rows, where anything is: then the inputs are candidates for one user.
    user: Tensors,
    inputs: Tensors,
    label: Tensor,
    bf16: bool,
}

impl Bench {
    fn logits(&self, train: bool) -> Result<Tensor> {
        let _autocast = autocast(self.bf16, self.store.device())?;
        let logits = if self.user.is_empty() {
            self.model.forward(&self.inputs, train)
        } else {
            self.model.score_candidates(&self.user, &self.inputs)
        };
        Ok(logits?.to_kind(Kind::Float))
    }
}

impl Work for Bench {
    /// Cross-entropy and regulariser, clipping, Adam; the preset's dropout.
    fn train_step(&mut self) -> Result<()> {
        let loss = self.loss(true)?;
        self.optimizer.step(&loss).map(|_| ())
    }

    /// Probabilities.
    fn infer(&self) -> Result<Tensor> {
        let _inference = densely_torch_ext::InferenceMode::new();
        Ok(self.logits(false)?.sigmoid())
    }

    /// Without the regulariser.
    fn loss(&self, train: bool) -> Result<Tensor> {
        let logits = self.logits(train)?;
        Ok(logits.f_binary_cross_entropy_with_logits::<Tensor>(
            &self.label,
            None,
            None,
            Reduction::Mean,
        )?)
    }

    fn store(&self) -> &VarStore {
        &self.store
    }
}
