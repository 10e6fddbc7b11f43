//! `densely interp greater-than`: how a model with two-digit tokens says that a later year comes behind an earlier one.

use std::path::PathBuf;

use densely_core::{Error, Result};
use densely_interp::circuit::{Direction, Local, PathOptions, Place, Sublayer, greedy_paths};
use densely_interp::dictionary::evaluate::{InPlace, replaced_run};
use densely_lm::process::{Processing, process};
use densely_lm::{Opened, Run};
use serde_json::json;
use tch::{Kind, Tensor};

use super::circuit::{Transcoders, path_words};
use crate::Common;
use crate::commands::lm::Source;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: densely interp greater-than gpt2 --dictionary transcoders/8,transcoders/9,transcoders/10 --processed\n\
                  Prompts are \"The war lasted from 17YY to 17\", YY from 02 to 98. The published transcoders of GPT-2 small want --processed."
)]
pub(crate) struct GreaterThan {
    #[command(flatten)]
    source: Source,
    /// Transcoders, of a layer each; each stands in its MLP's place alone for the second figure. `8=DIR` says the layer of one that does not say it itself.
    #[arg(long, value_name = "[LAYER=]DIR", value_delimiter = ',')]
    dictionary: Vec<PathBuf>,
    /// Fold norms, centre what is written and the unembedding, as the released transcoders were trained.
    #[arg(long)]
    processed: bool,
    /// Paths to print, of the prompt with 35.
    #[arg(long, default_value_t = 15, value_name = "N")]
    paths: usize,
}

/// The tokens of "00" to "99".
fn digits(opened: &Opened) -> Result<Vec<i64>> {
    (0..100)
        .map(|number| {
            let text = format!("{number:02}");
            match opened.tokenizer.encode_plain(&text)?[..] {
                [id] => Ok(id),
                _ => Err(Error::Unsupported {
                    what: format!("a tokeniser without a token for `{text}`"),
                    hint: "the study is of models whose years are two tokens, such as GPT-2"
                        .to_owned(),
                }),
            }
        })
        .collect()
}

/// P(later) - P(not later) among the 100 two-digit tokens, of each prompt.
fn metric(logits: &Tensor, digits: &[i64], year: i64) -> Result<f64> {
    let ids = Tensor::from_slice(digits).to_device(logits.device());
    let chances = logits.f_index_select(0, &ids)?.f_softmax(0, Kind::Double)?;
    let later = chances
        .f_narrow(0, year + 1, 99 - year)?
        .f_sum(Kind::Double)?
        .f_double_value(&[])?;
    Ok(2.0 * later - 1.0)
}

/// A prompt's tokens, or none where its year is not the century's token and that of its two digits.
fn prompt(opened: &Opened, year: i64, digits: &[i64]) -> Result<Option<Vec<i64>>> {
    let tokenizer = &opened.tokenizer;
    let own = tokenizer.encode_plain(&format!(" 17{year:02}"))?;
    let splits = own.len() == 2 && own.last() == digits.get(year as usize);
    if !splits {
        return Ok(None);
    }
    let text = format!("The war lasted from 17{year:02} to 17");
    let ids = tokenizer.encode_plain(&text)?;
    Ok(Some(tokenizer.bos().into_iter().chain(ids).collect()))
}

/// What makes "40" likelier than "20". As published, the difference of the two columns read in the last residual where norms are folded into what reads
/// them; else the difference of the two logits, whose norm has weights of its own.
fn root(opened: &Opened, local: &Local, digits: &[i64], processed: bool) -> Result<Direction> {
    let of = |number: usize| digits.get(number).copied().unwrap_or(0);
    let last = local.ids().len() - 1;
    if !processed {
        return local.logit_difference(last, of(40), of(20));
    }
    let unembedding = opened.model.w_u()?;
    let column = |number| unembedding.f_select(1, of(number));
    let place = Place {
        layer: opened.model.config().n_layers - 1,
        sublayer: Sublayer::Post,
        token: last,
    };
    local.residual(place, &column(40)?.f_sub(&column(20)?)?)
}

pub(super) fn run(arguments: &GreaterThan, common: &Common) -> Result<()> {
    let mut opened = arguments.source.open(common)?;
    if arguments.processed {
        let what = Processing::transformer_lens(opened.model.config());
        opened.model = process(&opened.model, &what)?;
    }
    let digits = digits(&opened)?;
    let mut prompts = Vec::new();
    for year in 2..=98 {
        if let Some(ids) = prompt(&opened, year, &digits)? {
            prompts.push((year, ids));
        }
    }
    if prompts.is_empty() {
        return Err(Error::Unsupported {
            what: "a tokeniser that takes no year of the 18th century as two tokens".to_owned(),
            hint: "the study is of models whose years are two tokens, such as GPT-2".to_owned(),
        });
    }
    if prompts.len() < 97 {
        tracing::warn!(
            "{} of 97 years are left out: they are not two tokens",
            97 - prompts.len()
        );
    }
    let transcoders = Transcoders::open(&arguments.dictionary, &opened, common)?;
    let mean = |place: Option<&InPlace>| -> Result<f64> {
        let mut sum = 0.0;
        for (year, ids) in &prompts {
            let ids = Tensor::f_from_slice(ids)?
                .f_unsqueeze(0)?
                .f_to_device(opened.model.device())?;
            let logits = tch::no_grad(|| match place {
                Some(place) => replaced_run(&opened.model, &ids, &[*place]),
                None => opened.model.run(&ids, &mut Run::new().last_only()),
            })?;
            let last = logits.f_select(1, logits.size()[1] - 1)?.f_select(0, 0)?;
            sum += metric(&last, &digits, *year)?;
        }
        Ok(sum / prompts.len() as f64)
    };
    let original = mean(None)?;
    let mut replaced = Vec::new();
    for (dictionary, read, write) in &transcoders.all {
        let place = InPlace {
            dictionary: &dictionary.dictionary,
            read,
            write,
        };
        replaced.push((write.clone(), mean(Some(&place))?));
    }
    let mut paths = Vec::new();
    // The prompt with 35, or the one nearest to it.
    let near = prompts.iter().min_by_key(|(year, _)| (year - 35).abs());
    if let (false, Some((_, ids))) = (transcoders.all.is_empty(), near) {
        let replacement = transcoders.replacement(&opened)?;
        let local = Local::new(&replacement, ids)?;
        let root = root(&opened, &local, &digits, arguments.processed)?;
        let options = PathOptions {
            iterations: 3,
            branches: arguments.paths,
            ..PathOptions::default()
        };
        for path in greedy_paths(&local, &root, None, &options)?
            .into_iter()
            .flatten()
        {
            if path.steps.len() > 1 {
                paths.push((path_words(&path, "40 less 20"), path.contribution()));
            }
        }
        paths.sort_by(|a, b| b.1.total_cmp(&a.1));
        paths.truncate(arguments.paths);
    }
    if common.json {
        let whole = json!({
            "original": original,
            "replaced": replaced.iter().map(|(write, value)| json!({ "write": write, "value": value })).collect::<Vec<_>>(),
            "paths": paths.iter().map(|(path, value)| json!({ "path": path, "contribution": value })).collect::<Vec<_>>(),
        });
        println!("{whole}");
        return Ok(());
    }
    println!(
        "P(later) - P(not later), mean over {} years: {original:.5} of the model",
        prompts.len()
    );
    for (write, value) in &replaced {
        println!("  {value:.5} with a transcoder for {write}");
    }
    for (path, value) in &paths {
        println!("  {value:+9.4}  {path}");
    }
    Ok(())
}
