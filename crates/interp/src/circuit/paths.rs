//! Greedy paths: from a direction down through the largest contributions, one component at a time.

use std::fmt;
use std::str::FromStr;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::contributions::{Component, ComponentKind, Contribution};
use super::local::{Direction, Local, Sublayer};

/// Settings of [`greedy_paths`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PathOptions {
    /// Components of the longest path, its root not counted.
    pub iterations: usize,
    /// Ways on from each path, and paths that are kept of a generation.
    pub branches: usize,
    /// Whether heads that look at the first token count. They often rest there, and it says nothing of the prompt.
    pub first_token: bool,
    /// Whether a contribution counts for no more than the least active feature on its path: what is lost when that feature is set to 0.
    pub capped: bool,
    /// What every component must fit.
    pub filters: Vec<Filter>,
}

impl Default for PathOptions {
    fn default() -> Self {
        Self {
            iterations: 3,
            branches: 15,
            first_token: false,
            capped: false,
            filters: Vec::new(),
        }
    }
}

/// One component of a path.
#[derive(Debug, Clone)]
pub struct Step {
    /// What it is; `None` for a root that is no feature.
    pub component: Option<Component>,
    /// The token at which it reads.
    pub token: usize,
    /// What it adds to the step before it; of a root, its value.
    pub contribution: f64,
    /// As a function of the residual that it reads, along the path; `None` where the path ends.
    pub direction: Option<Direction>,
    /// Activation of the least active feature from the root to here.
    cap: f64,
}

impl Step {
    fn sublayer(&self) -> Option<Sublayer> {
        self.direction.as_ref().map(|own| own.place.sublayer)
    }

    fn layer(&self) -> Option<usize> {
        let component = self.component.and_then(Component::layer);
        component.or_else(|| self.direction.as_ref().map(|own| own.place.layer))
    }
}

/// A root and the components that lead to it, each writing into the one before.
#[derive(Debug, Clone)]
pub struct Path {
    /// From the root to the last component.
    pub steps: Vec<Step>,
}

impl Path {
    /// What the last component adds along this path.
    pub fn contribution(&self) -> f64 {
        self.steps.last().map_or(0.0, |step| step.contribution)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.steps.iter().enumerate() {
            let arrow = if place == 0 { "" } else { " <- " };
            match step.component {
                Some(component) => write!(f, "{arrow}{component}@{}", step.token)?,
                None => write!(f, "{arrow}root@{}", step.token)?,
            }
            write!(f, ": {:.4}", step.contribution)?;
        }
        Ok(())
    }
}

/// The paths of each generation: those of one component below the root, of two, and so on.
///
/// In each iteration every path is extended by its `branches` largest contributions (by value, the largest positive first); of all of these together the
/// `branches` largest make the generation. Features, heads with the tokens they look at, skips and embeddings are components of paths; biases and errors are
/// not, see [`Local::contributions`] for them. A path ends at an embedding. `component` says what the root is, for [`PathOptions::capped`] and for the
/// graph's name.
///
/// # Errors
/// [`Error::Config`] for a root that the prompt lacks, or no branches.
pub fn greedy_paths(
    local: &Local<'_>,
    root: &Direction,
    component: Option<Component>,
    options: &PathOptions,
) -> Result<Vec<Vec<Path>>> {
    if options.branches == 0 {
        return Err(Error::config("branches", "must be at least 1, got 0"));
    }
    let cap = match component {
        Some(Component::Feature { layer, feature }) => {
            local.activation(layer, root.place.token, feature)?
        }
        _ => f64::INFINITY,
    };
    let mut paths = vec![Path {
        steps: vec![Step {
            component,
            token: root.place.token,
            contribution: local.value(root)?,
            direction: Some(root.clone()),
            cap,
        }],
    }];
    let mut generations = Vec::new();
    for _ in 0..options.iterations {
        paths = extended(local, &paths, options)?;
        if paths.is_empty() {
            break;
        }
        generations.push(paths.clone());
    }
    Ok(generations)
}

/// The next generation.
fn extended(local: &Local<'_>, paths: &[Path], options: &PathOptions) -> Result<Vec<Path>> {
    let mut pool: Vec<(&Path, &Direction, Step)> = Vec::new();
    for path in paths {
        let Some(last) = path.steps.last() else {
            continue;
        };
        let Some(direction) = &last.direction else {
            continue;
        };
        let mut steps = Vec::new();
        for contribution in local.contributions(direction)? {
            if let Some(step) = candidate(local, last, direction, contribution, options)? {
                steps.push(step);
            }
        }
        steps.sort_by(largest_first);
        steps.truncate(options.branches);
        pool.extend(steps.into_iter().map(|step| (path, direction, step)));
    }
    pool.sort_by(|(_, _, a), (_, _, b)| largest_first(a, b));
    pool.truncate(options.branches);
    pool.into_iter()
        .map(|(path, direction, mut step)| {
            // Only for those that are kept: it costs more than the number.
            if let Some(component) = step.component {
                step.direction = local.follow(direction, component)?;
            }
            let mut steps = path.steps.clone();
            steps.push(step);
            Ok(Path { steps })
        })
        .collect()
}

fn largest_first(a: &Step, b: &Step) -> std::cmp::Ordering {
    b.contribution
        .total_cmp(&a.contribution)
        .then(a.component.cmp(&b.component))
}

/// The step that a contribution makes, where paths may take it.
fn candidate(
    local: &Local<'_>,
    last: &Step,
    direction: &Direction,
    Contribution { component, value }: Contribution,
    options: &PathOptions,
) -> Result<Option<Step>> {
    if !component.is_on_paths() {
        return Ok(None);
    }
    let token = match component {
        Component::Head { source: 0, .. } if !options.first_token => return Ok(None),
        Component::Head { source, .. } => source,
        _ => direction.place.token,
    };
    let cap = match component {
        Component::Feature { layer, feature } => {
            last.cap.min(local.activation(layer, token, feature)?)
        }
        _ => last.cap,
    };
    let contribution = if options.capped {
        value.min(last.cap)
    } else {
        value
    };
    let step = Step {
        component: Some(component),
        token,
        contribution,
        direction: None,
        cap,
    };
    let fits = options.filters.iter().all(|filter| filter.fits(&step));
    Ok(fits.then_some(step))
}

/// How a number is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
}

impl Compare {
    /// Those of two letters first: they start with those of one.
    const ALL: [(&'static str, Self); 6] = [
        ("!=", Self::NotEqual),
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("=", Self::Equal),
        ("<", Self::Less),
        (">", Self::More),
    ];

    const fn holds(self, a: i64, b: i64) -> bool {
        match self {
            Self::Equal => a == b,
            Self::NotEqual => a != b,
            Self::Less => a < b,
            Self::AtMost => a <= b,
            Self::More => a > b,
            Self::AtLeast => a >= b,
        }
    }
}

/// What a component must be; what is `None` may be anything.
///
/// As text the conditions stand side by side: `kind=head,layer<9,token!=0`, of `kind`, `sublayer`, `layer`, `token`, `head` and `feature`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Its kind.
    pub kind: Option<ComponentKind>,
    /// Where in a block it reads: features `mid`, heads `pre`.
    pub sublayer: Option<Sublayer>,
    /// Its layer.
    pub layer: Option<(Compare, i64)>,
    /// The token at which it reads.
    pub token: Option<(Compare, i64)>,
    /// The number of a head.
    pub head: Option<(Compare, i64)>,
    /// The number of a feature.
    pub feature: Option<(Compare, i64)>,
}

impl Filter {
    /// Whether a component of a path is such a one.
    pub fn fits(&self, step: &Step) -> bool {
        let holds = |condition: Option<(Compare, i64)>, own: Option<i64>| match condition {
            None => true,
            Some((compare, number)) => own.is_some_and(|own| compare.holds(own, number)),
        };
        let (head, feature) = match step.component {
            Some(Component::Head { head, .. }) => (Some(head), None),
            Some(Component::Feature { feature, .. }) => (None, Some(feature)),
            _ => (None, None),
        };
        let kind = step.component.map(Component::kind);
        let sublayer = match kind {
            Some(ComponentKind::Feature | ComponentKind::Skip) => Some(Sublayer::Mid),
            Some(ComponentKind::Head) => Some(Sublayer::Pre),
            _ => step.sublayer(),
        };
        self.kind.is_none_or(|asked| kind == Some(asked))
            && self.sublayer.is_none_or(|asked| sublayer == Some(asked))
            && holds(self.layer, step.layer().map(|layer| layer as i64))
            && holds(self.token, Some(step.token as i64))
            && holds(self.head, head)
            && holds(self.feature, feature)
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut filter = Self::default();
        for condition in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let refuse = || {
                let reason = format!(
                    "must be conditions such as `kind=head`, `sublayer=mid`, `layer<9`, `token!=0`, `head=10` or `feature=42`, got `{condition}`"
                );
                Error::config("filter", reason)
            };
            let split = |(sign, compare): &(&str, Compare)| {
                let (name, value) = condition.split_once(*sign)?;
                Some((name.trim(), *compare, value.trim()))
            };
            let (name, compare, value) = Compare::ALL.iter().find_map(split).ok_or_else(refuse)?;
            if matches!(name, "kind" | "sublayer") {
                if compare != Compare::Equal {
                    return Err(refuse());
                }
                let word = serde_json::Value::from(value);
                if name == "kind" {
                    filter.kind = Some(serde_json::from_value(word).map_err(|_| refuse())?);
                } else {
                    filter.sublayer = Some(serde_json::from_value(word).map_err(|_| refuse())?);
                }
                continue;
            }
            let number = Some((compare, value.parse::<i64>().map_err(|_| refuse())?));
            match name {
                "layer" => filter.layer = number,
                "token" => filter.token = number,
                "head" => filter.head = number,
                "feature" => filter.feature = number,
                _ => return Err(refuse()),
            }
        }
        Ok(filter)
    }
}

/// The paths whose last components fit the filters, one each, in the order from the root.
pub fn ending<'p>(paths: &'p [Path], filters: &[Filter]) -> Vec<&'p Path> {
    let fits = |path: &&Path| {
        let start = path.steps.len().checked_sub(filters.len());
        let last = start.and_then(|start| path.steps.get(start..));
        last.is_some_and(|steps| all_fit(steps, filters))
    };
    paths.iter().filter(fits).collect()
}

/// The paths in which components fit the filters somewhere, one each, side by side, in the order from the root.
pub fn containing<'p>(paths: &'p [Path], filters: &[Filter]) -> Vec<&'p Path> {
    let fits = |path: &&Path| {
        filters.is_empty()
            || path
                .steps
                .windows(filters.len())
                .any(|steps| all_fit(steps, filters))
    };
    paths.iter().filter(fits).collect()
}

fn all_fit(steps: &[Step], filters: &[Filter]) -> bool {
    steps.len() == filters.len()
        && steps
            .iter()
            .zip(filters)
            .all(|(step, filter)| filter.fits(step))
}
