//! Paths merged into a graph: what several paths come by is one node.

use std::collections::{BTreeMap, BTreeSet};

use densely_core::Result;
use serde::Serialize;

use super::contributions::{Component, ComponentKind};
use super::local::{Direction, Local};
use super::paths::{Path, Step};

/// What makes two steps one node: the component and the token at which it reads. A head's token is the one that it looks at, so that heads that look at it
/// from several tokens are one.
type Key = (Option<Component>, usize);

/// A component, as all paths together come by it.
#[derive(Debug)]
pub struct PathNode {
    /// What it is; `None` for a root that is no feature.
    pub component: Option<Component>,
    /// The token at which it reads.
    pub token: usize,
    /// Sum of what it adds to its parents; of the root, its value.
    pub contribution: f64,
    /// Sum of its directions along all ways from the root; `None` where paths end.
    pub direction: Option<Direction>,
    /// What no edge into it explains; all 0 where no path goes on from it.
    pub errors: PathErrors,
}

/// What is left of a node's contribution beside the edges into it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct PathErrors {
    /// What transcoders miss.
    pub transcoder: f64,
    /// Biases, and offsets of the direction.
    pub bias: f64,
    /// Everything else: components that no path was kept for.
    pub pruning: f64,
}

/// What a component adds to another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PathEdge {
    /// The number of the node that writes.
    pub source: usize,
    /// The number of the node that reads.
    pub target: usize,
    /// Sum over all ways from the root.
    pub weight: f64,
}

/// Nodes and edges of a number of paths, the root first.
#[derive(Debug)]
pub struct PathGraph {
    /// In the order in which paths come by them.
    pub nodes: Vec<PathNode>,
    /// By target and then source.
    pub edges: Vec<PathEdge>,
}

impl PathGraph {
    /// Merges paths of one root; those of several generations may be given together. Each distinct beginning of a path counts once.
    ///
    /// # Errors
    /// [`densely_core::Error::Config`] when the paths are not of this prompt.
    pub fn new<'p>(local: &Local<'_>, paths: impl IntoIterator<Item = &'p Path>) -> Result<Self> {
        let mut nodes: Vec<PathNode> = Vec::new();
        let mut places = BTreeMap::<Key, usize>::new();
        let mut edges = BTreeMap::<(usize, usize), f64>::new();
        let mut seen = BTreeSet::<Vec<Key>>::new();
        for path in paths {
            let mut before: Option<usize> = None;
            let mut prefix = Vec::with_capacity(path.steps.len());
            for step in &path.steps {
                let key = (step.component, step.token);
                prefix.push(key);
                let place = *places.entry(key).or_insert_with(|| {
                    nodes.push(PathNode {
                        component: step.component,
                        token: step.token,
                        contribution: 0.0,
                        direction: None,
                        errors: PathErrors::default(),
                    });
                    nodes.len() - 1
                });
                if seen.insert(prefix.clone()) {
                    if let Some(node) = nodes.get_mut(place) {
                        node.add(step)?;
                    }
                    if let Some(target) = before {
                        *edges.entry((target, place)).or_default() += step.contribution;
                    }
                }
                before = Some(place);
            }
        }
        for (place, node) in nodes.iter_mut().enumerate() {
            let explained: Vec<f64> = edges
                .range((place, 0)..=(place, usize::MAX))
                .map(|(_, weight)| *weight)
                .collect();
            if let Some(direction) = node.direction.as_ref().filter(|_| !explained.is_empty()) {
                node.errors = errors(local, direction, node.contribution, explained.iter().sum())?;
            }
        }
        let edges = edges
            .into_iter()
            .map(|((target, source), weight)| PathEdge {
                source,
                target,
                weight,
            });
        Ok(Self {
            nodes,
            edges: edges.collect(),
        })
    }
}

impl PathNode {
    fn add(&mut self, step: &Step) -> Result<()> {
        self.contribution += step.contribution;
        let Some(more) = &step.direction else {
            return Ok(());
        };
        self.direction = Some(match &self.direction {
            None => more.clone(),
            Some(own) => Direction {
                place: own.place,
                vector: own.vector.f_add(&more.vector)?,
                offset: own.offset + more.offset,
            },
        });
        Ok(())
    }
}

/// What a node's contribution holds beside the edges into it.
fn errors(
    local: &Local<'_>,
    direction: &Direction,
    contribution: f64,
    explained: f64,
) -> Result<PathErrors> {
    let parts = local.contributions(direction)?;
    let of = |kind: ComponentKind| -> f64 {
        let own = parts.iter().filter(|part| part.component.kind() == kind);
        own.map(|part| part.value).sum()
    };
    let (transcoder, bias) = (of(ComponentKind::Error), of(ComponentKind::Bias));
    Ok(PathErrors {
        transcoder,
        bias,
        pruning: contribution - explained - transcoder - bias,
    })
}
