//! A bar for people who watch: epoch, step, loss, time left. It shows itself on a terminal only, and only with the
//! feature `progress`; else its methods do nothing, so that loops need no cases.

/// A progress bar on standard error.
#[derive(Debug)]
pub struct Bar {
    #[cfg(feature = "progress")]
    bar: indicatif::ProgressBar,
    /// What was said last of how good it is.
    #[cfg(feature = "progress")]
    score: std::cell::RefCell<String>,
}

#[cfg(feature = "progress")]
impl Bar {
    /// A bar of `total` steps of which `done` were made by an earlier process. Hidden when `quiet`, and where standard
    /// error is not a terminal.
    pub fn new(total: u64, done: u64, quiet: bool) -> Self {
        use std::io::IsTerminal;
        if quiet || !std::io::stderr().is_terminal() {
            return Self {
                bar: indicatif::ProgressBar::hidden(),
                score: std::cell::RefCell::default(),
            };
        }
        let bar = indicatif::ProgressBar::new(total).with_position(done);
        let template = "{prefix} {bar:30} {pos}/{len} steps, {msg}{per_sec}, {eta} left";
        if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.reset_eta();
        Self {
            bar,
            score: std::cell::RefCell::default(),
        }
    }

    /// Says how good it is, such as `31.2 dB`; shown from the next step on.
    pub fn say(&self, score: String) {
        self.score.replace(score);
    }

    /// Shows where the run stands (`epoch` counted from 0, shown from 1); cheap enough for every step.
    pub fn update(&self, epoch: u64, step: u64, loss: Option<f64>) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_prefix(format!("epoch {}", epoch + 1));
        let mut words = loss.map_or_else(String::new, |loss| format!("loss {loss:.4}, "));
        let score = self.score.borrow();
        if !score.is_empty() {
            words += &score;
            words += ", ";
        }
        self.bar.set_message(words);
        self.bar.set_position(step);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(not(feature = "progress"))]
impl Bar {
    /// Nothing: the feature `progress` is off.
    pub const fn new(_total: u64, _done: u64, _quiet: bool) -> Self {
        Self {}
    }

    /// Nothing.
    pub fn say(&self, _score: String) {}

    /// Nothing.
    pub const fn update(&self, _epoch: u64, _step: u64, _loss: Option<f64>) {}

    /// Nothing.
    pub const fn finish(&self) {}
}
