//! What labels mean.

use densely_core::{Error, Result};

use super::Part;

/// Whether the labels of `part` mean what `known` names: the same names, or numbers of which there are not more.
pub(crate) fn same_classes(what: &str, part: &Part, known: &[String], count: usize) -> Result<()> {
    let own = part.classes();
    if own == known || (numbered(own) && own.len() <= count && !misnumbered(known, own.len())) {
        return Ok(());
    }
    let reason = format!(
        "the classes of {what} ({}) are not those that are trained on ({})",
        own.join(", "),
        known.join(", ")
    );
    Err(Error::data("", reason))
}

/// Whether the name of a class is the number of another one of `count`, as where folders called 1 to 5 meet labels from 0 to 4.
fn misnumbered(names: &[String], count: usize) -> bool {
    let mut names = names.iter().enumerate();
    names.any(|(place, name)| {
        let number = name.parse();
        number.is_ok_and(|number: usize| number != place && number < count)
    })
}

/// Whether classes have no names but their numbers.
fn numbered(names: &[String]) -> bool {
    let mut names = names.iter().enumerate();
    names.all(|(place, name)| *name == place.to_string())
}

/// The names that the settings give, or the files', or numbers.
pub(super) fn classes(named: &[String], train: &Part) -> Result<Vec<String>> {
    let known = train.classes();
    if !named.is_empty() && named != known && !numbered(known) {
        let reason = format!(
            "must not name classes ({}) that the files name themselves ({})",
            named.join(", "),
            known.join(", ")
        );
        return Err(Error::config("data.classes", reason));
    }
    let most = (0..train.len())
        .map(|place| train.label(place))
        .try_fold(0, |most, label| label.map(|label| most.max(label + 1)))? as usize;
    if named.is_empty() && known.len() >= most && !known.is_empty() {
        return Ok(known.to_vec());
    }
    if named.is_empty() {
        return Ok((0..most.max(2)).map(|class| class.to_string()).collect());
    }
    if misnumbered(named, most) {
        let reason = format!(
            "must not call a class by another one's number, got {}; give words, such as `1 star`",
            named.join(", ")
        );
        return Err(Error::config("data.classes", reason));
    }
    if named.len() < most {
        let reason = format!(
            "must name at least {most} classes, as many as the pictures have, got {}",
            named.len()
        );
        return Err(Error::config("data.classes", reason));
    }
    Ok(named.to_vec())
}
