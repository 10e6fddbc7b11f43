//! An attribution graph as one page that opens in a browser: the graph over tokens and layers, and what is known of the chosen node.
//!
//! The page holds all it shows. It loads nothing, so that it can be kept, sent and opened without a server.

use std::path::Path;

use densely_core::{Error, Result, fs};
use serde::{Deserialize, Serialize};

use super::export::GraphFile;

const TEMPLATE: &str = include_str!("page.html");

pub use crate::dictionary::examples::Example;

/// A token and how much a feature speaks for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// The token's text.
    pub token: String,
    /// How much.
    pub value: f64,
}

/// What is known of a feature, whatever the prompt.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FeatureDetail {
    /// Its layer.
    pub layer: usize,
    /// Its number.
    pub feature: i64,
    /// What it was called; empty where it has no name.
    pub label: String,
    /// The texts in which it is most active.
    pub examples: Vec<Example>,
    /// Tokens that it makes likely, the most likely first.
    pub top_logits: Vec<Effect>,
    /// Tokens that it makes unlikely.
    pub bottom_logits: Vec<Effect>,
    /// Tokens whose embeddings it reads.
    pub embeddings: Vec<Effect>,
}

/// A page.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Page {
    /// Its title.
    pub title: String,
    /// What it was made from, in a line: model and transcoders.
    pub source: String,
    /// The graph.
    pub graph: GraphFile,
    /// Details of features; those of features that are not in the graph are left out.
    pub features: Vec<FeatureDetail>,
}

impl Page {
    /// The page as HTML.
    ///
    /// # Errors
    /// [`Error::Config`] when an example's tokens and activations differ in number.
    pub fn html(&self) -> Result<String> {
        let mut features = Vec::new();
        for detail in &self.features {
            for example in &detail.examples {
                let count = example.tokens.len();
                if example.activations.len() != count || example.peak >= count.max(1) {
                    let reason = format!(
                        "an example of layer {} feature {} has {count} tokens, {} activations and its peak at {}",
                        detail.layer,
                        detail.feature,
                        example.activations.len(),
                        example.peak
                    );
                    return Err(Error::config("examples", reason));
                }
            }
            // A feature's nodes are named by layer and number, then token.
            let prefix = format!("{}_{}_", detail.layer, detail.feature);
            let mut nodes = self.graph.nodes.iter();
            if nodes.any(|node| node.node_id.starts_with(&prefix)) {
                features.push(detail);
            }
        }
        let data = serde_json::json!({
            "title": self.title,
            "source": self.source,
            "graph": self.graph,
            "features": features,
        });
        let [before, between, after] = parts(TEMPLATE)?;
        let title = densely_train::svg::escaped(&self.title);
        // Within a script only `<` can end it; in JSON it stands in texts alone, where it may be written like this.
        let data = data.to_string().replace('<', "\\u003c");
        Ok([before, title.as_str(), between, data.as_str(), after].concat())
    }

    /// Writes the page, whole or not at all.
    ///
    /// # Errors
    /// Those of [`html`](Self::html); [`Error::Io`] naming `path`.
    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, self.html()?.as_bytes())
    }
}

/// The template around its title and its data.
fn parts(template: &str) -> Result<[&str; 3]> {
    let cut = template.split_once("{{title}}").and_then(|(before, rest)| {
        let (between, after) = rest.split_once("{{data}}")?;
        Some([before, between, after])
    });
    cut.ok_or_else(|| Error::config("page", "the template has no place for title and data"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_has_its_two_places_once() -> Result<()> {
        let parts = parts(TEMPLATE)?;
        assert!(parts.iter().all(|part| !part.contains("{{")));
        Ok(())
    }

    #[test]
    fn the_template_loads_nothing() {
        for word in [
            "http:",
            "https:",
            "fetch(",
            "import(",
            "eval(",
            "innerHTML",
            "onclick=",
        ] {
            assert!(!TEMPLATE.contains(word), "{word}");
        }
    }
}
