//! Draws among the facts of a relation, without going through the list for each.

use std::collections::BTreeMap;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::facts::Fact;

/// A list of facts by relation. Those without a relation or an attribute are related to nothing.
#[derive(Debug, Default)]
pub(super) struct Relations<'a> {
    /// Attributes by relation, each once and in order.
    attributes: BTreeMap<&'a str, Vec<&'a str>>,
    /// Facts by relation and template.
    alike: BTreeMap<(&'a str, &'a str), Group<'a>>,
    /// Facts by relation, template and attribute.
    sharing: BTreeMap<(&'a str, &'a str, &'a str), Group<'a>>,
}

impl<'a> Relations<'a> {
    pub(super) fn new(facts: &'a [Fact]) -> Self {
        let mut found = Self::default();
        for fact in facts {
            let (Some(relation), Some(attribute)) = (&fact.relation, &fact.attribute) else {
                continue;
            };
            let (relation, attribute) = (relation.as_str(), attribute.as_str());
            let template = fact.template.as_str();
            let attributes = found.attributes.entry(relation).or_default();
            attributes.push(attribute);
            let alike = found.alike.entry((relation, template)).or_default();
            alike.push(fact);
            let sharing = found.sharing.entry((relation, template, attribute));
            sharing.or_default().push(fact);
        }
        for attributes in found.attributes.values_mut() {
            // Each once, so that frequent ones are not drawn more often.
            attributes.sort_unstable();
            attributes.dedup();
        }
        found
    }

    /// Another attribute of the relation of a fact of the list.
    pub(super) fn attribute(&self, fact: &'a Fact, rng: &mut ChaCha8Rng) -> Option<&'a str> {
        let attributes = self.attributes.get(fact.relation.as_deref()?)?;
        let own = attributes.binary_search(&fact.attribute.as_deref()?).ok()?;
        let number = drawn(rng, attributes.len() - 1)?;
        attributes.get(number + usize::from(number >= own)).copied()
    }

    /// Another subject's fact of the relation and template of a fact of the list: with the same attribute where there is one, as CounterFact's
    /// neighbours have it.
    pub(super) fn neighbour(&self, fact: &'a Fact, rng: &mut ChaCha8Rng) -> Option<&'a Fact> {
        let (relation, template) = (fact.relation.as_deref()?, fact.template.as_str());
        let attribute = fact.attribute.as_deref()?;
        let sharing = self.sharing.get(&(relation, template, attribute));
        let group = match sharing.filter(|group| group.others(&fact.subject) > 0) {
            Some(group) => group,
            None => self.alike.get(&(relation, template))?,
        };
        let number = drawn(rng, group.others(&fact.subject))?;
        group.other(&fact.subject, number)
    }
}

/// Facts in the order of the list.
#[derive(Debug, Default)]
struct Group<'a> {
    facts: Vec<&'a Fact>,
    /// For each fact of a subject, how many of others come before it.
    before: BTreeMap<&'a str, Vec<usize>>,
}

impl<'a> Group<'a> {
    fn push(&mut self, fact: &'a Fact) {
        let before = self.before.entry(fact.subject.as_str()).or_default();
        before.push(self.facts.len() - before.len());
        self.facts.push(fact);
    }

    fn before(&self, subject: &str) -> &[usize] {
        let before = self.before.get(subject).map(Vec::as_slice);
        before.unwrap_or_default()
    }

    /// Number of facts of other subjects.
    fn others(&self, subject: &str) -> usize {
        self.facts.len() - self.before(subject).len()
    }

    /// The fact of this number among those of other subjects.
    fn other(&self, subject: &str, number: usize) -> Option<&'a Fact> {
        let own = self
            .before(subject)
            .partition_point(|others| *others <= number);
        self.facts.get(number + own).copied()
    }
}

/// A number below `count`.
fn drawn(rng: &mut ChaCha8Rng, count: usize) -> Option<usize> {
    (count > 0).then(|| rng.random_range(0..count))
}
