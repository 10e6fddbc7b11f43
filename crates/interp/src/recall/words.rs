//! What heads write, in words of the vocabulary.

use std::collections::BTreeSet;

use densely_core::{Error, Result};
use densely_lm::Lm;
use serde::Serialize;
use tch::{Kind, Tensor};

use super::{
    BATCH, Question, check_answers, check_head, check_token, double, last_positions, point_z, top,
};

/// What a head writes at the last position, read through the last norm and the model's head.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeadOutput {
    /// Its layer.
    pub layer: usize,
    /// Its number in the layer.
    pub head: i64,
    /// Tokens whose logits it raises most on the mean over prompts, each with that mean.
    pub tokens: Vec<(i64, f64)>,
    /// Place of the subject's first token, from 0, among all tokens by what the head writes on the subject's own prompt: the mean over
    /// prompts. A head that moves subjects has it near 0, one that knows nothing of them at half the vocabulary.
    pub subject_rank: f64,
    /// The same of the answer's first token.
    pub answer_rank: f64,
}

/// Reads the outputs (`hook_result`) of heads, given by layer and number, at the last position: `norm(output) · W_U`, where the last norm
/// keeps the scale that it has on the whole residual of each prompt. `subjects` holds the first token of each question's subject; `count`
/// tokens are named.
///
/// Ranks are taken prompt by prompt and then averaged, since prompts differ in subject and answer: on the mean output only what all
/// prompts share would be left.
///
/// # Errors
/// [`Error::Config`] when a question, subject or head does not fit the model, or there is not one subject for each question.
pub fn head_outputs(
    model: &Lm,
    questions: &[Question],
    subjects: &[i64],
    heads: &[(usize, i64)],
    count: i64,
) -> Result<Vec<HeadOutput>> {
    check_answers(model, questions)?;
    let n = questions.len();
    if subjects.len() != n {
        let reason = format!(
            "must be one for each of {n} questions, got {}",
            subjects.len()
        );
        return Err(Error::config("subjects", reason));
    }
    for token in subjects {
        check_token(model, *token)?;
    }
    for (layer, head) in heads {
        check_head(model, *layer, *head)?;
    }
    let _guard = tch::no_grad_guard();
    let prompts: Vec<Vec<i64>> = questions.iter().map(|q| q.ids.clone()).collect();
    let answers: Vec<i64> = questions.iter().map(|q| q.answer).collect();
    let behind = format!("blocks.{}.hook_resid_post", model.config().n_layers - 1);
    let layers: BTreeSet<usize> = heads.iter().map(|(layer, _)| *layer).collect();
    let mut names: Vec<String> = layers.into_iter().map(point_z).collect();
    names.push(behind.clone());
    let seen = last_positions(model, &prompts, &names)?;
    let scale = model.final_scale(seen.get(&behind)?)?; // [prompts, 1]
    let matrix = model.w_u()?.f_to_kind(scale.kind())?; // [d, vocab]
    let column = |tokens: &[i64]| -> Result<Tensor> {
        let column = Tensor::f_from_slice(tokens)?.f_unsqueeze(1)?;
        Ok(column.f_to(model.device())?)
    };
    let asked = [column(subjects)?, column(&answers)?]; // [prompts, 1] each
    let mut found = Vec::with_capacity(heads.len());
    for (layer, head) in heads {
        let zs = seen.get(&point_z(*layer))?.f_unsqueeze(1)?; // [prompts, 1, heads, d_head]
        let written = model.head_results(*layer, &zs)?.f_select(2, *head)?;
        let normed = model.frozen_norm(&written.f_squeeze_dim(1)?, &scale)?; // [prompts, d]
        let mut above = [0i64; 2];
        for start in (0..n).step_by(BATCH) {
            let (start, rows) = (start as i64, BATCH.min(n - start) as i64);
            let logits = normed.f_narrow(0, start, rows)?.f_matmul(&matrix)?; // [rows, vocab]
            for (sum, tokens) in above.iter_mut().zip(&asked) {
                let own = logits.f_gather(1, &tokens.f_narrow(0, start, rows)?, false)?;
                let places = logits.f_gt_tensor(&own)?.f_sum(Kind::Int64)?;
                *sum += places.f_int64_value(&[])?;
            }
        }
        let mean = normed.f_mean_dim([0i64].as_slice(), true, None::<Kind>)?; // [1, d]
        let logits = mean.f_matmul(&matrix)?.f_squeeze_dim(0)?;
        let [subject_rank, answer_rank] = above.map(|sum| sum as f64 / n as f64);
        found.push(HeadOutput {
            layer: *layer,
            head: *head,
            tokens: top(&double(&logits)?, count)?,
            subject_rank,
            answer_rank,
        });
    }
    Ok(found)
}
