//! The settings that the paper searches, and how it trains the networks that were chosen.

use serde::Serialize;

/// A setting of one kind of network, and the values among which it is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Search {
    /// Preset of the network.
    pub network: &'static str,
    /// The setting: a field of its config.
    pub setting: &'static str,
    /// Its values.
    pub values: &'static [f64],
    /// What other fields are held at.
    pub fixed: &'static [(&'static str, f64)],
    /// Learning rate of Adam for the network that was chosen, per step.
    pub lr: f64,
    /// Sums of the spectrum in the published configurations.
    pub spectrum_size: i64,
    /// Sums that the authors advise elsewhere; half of them for radiance fields.
    pub advised_size: i64,
}

const OMEGAS: &[f64] = &[
    10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 110.0, 120.0, 130.0, 140.0, 150.0,
    160.0, 170.0, 180.0, 190.0, 200.0,
];

const SIGMAS: &[f64] = &[
    1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0,
    18.0, 19.0, 20.0,
];

const BIASES: &[f64] = &[
    0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8,
    1.9, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7, 2.8, 2.9, 3.0,
];

/// SIREN: the frequency that multiplies the coordinates.
pub const SIREN: Search = Search {
    network: "siren-fresh",
    setting: "first_omega",
    values: OMEGAS,
    fixed: &[("beta", 1.0), ("omega", 30.0)],
    lr: 1e-4,
    spectrum_size: 64,
    advised_size: 64,
};

/// Parameters of the Beta distribution of SIREN's first weights; the longest search tries each with each of SIREN's frequencies.
pub const SIREN_BETAS: &[f64] = &[
    0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 20.0,
];

/// Gaussian Fourier features under a ReLU network: their standard deviation.
pub const FOURIER: Search = Search {
    network: "ffn-fresh",
    setting: "sigma",
    values: SIGMAS,
    fixed: &[],
    lr: 3e-3,
    spectrum_size: 64,
    advised_size: 128,
};

/// FINER: the bound of the first biases.
pub const FINER: Search = Search {
    network: "finer",
    setting: "first_bias",
    values: BIASES,
    fixed: &[("first_omega", 30.0), ("omega", 30.0)],
    lr: 1e-4,
    spectrum_size: 64,
    advised_size: 128,
};

/// FINER with first biases of 0: the frequency of the first layer.
pub const FINER_WITHOUT_BIAS: Search = Search {
    network: "finer",
    setting: "first_omega",
    values: OMEGAS,
    fixed: &[("first_bias", 0.0), ("omega", 30.0)],
    lr: 1e-4,
    spectrum_size: 64,
    advised_size: 128,
};

/// All searches of the paper.
pub const SEARCHES: &[Search] = &[SIREN, FOURIER, FINER, FINER_WITHOUT_BIAS];

/// How the paper trains what was chosen: mean squared error in [-1, 1] by Adam at the rate of the [`Search`], all networks with three
/// hidden layers of 256.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Training {
    /// Steps of Adam.
    pub steps: u64,
    /// Pixels of a step; a smaller picture is one batch, a larger one is cut into batches in a new random order each time.
    pub batch: i64,
    /// Share of the pixels, drawn at random, that are not trained on and give the PSNR that is reported.
    pub held_out: f64,
    /// Hidden layers.
    pub hidden_layers: i64,
    /// Width of each.
    pub hidden: i64,
    /// Random draws of a network for its mean distance.
    pub draws: usize,
    /// Seed.
    pub seed: i64,
}

/// The paper's training.
pub const TRAINING: Training = Training {
    steps: 15_000,
    batch: 600_000,
    held_out: 0.1,
    hidden_layers: 3,
    hidden: 256,
    draws: 10,
    seed: 0,
};
