//! Training steps that a GPU repeats from a recording (CUDA graphs): of a small model, most of a step's time goes into asking for
//! its operations one by one, and a recording asks once.
//!
//! A step may be repeated when nothing in it depends on a number that the program holds: rows come in tensors that stay where they
//! are, learning rate and count of steps are read from the device ([`Optimizer::stage`](crate::Optimizer::stage)), and
//! nothing is read back.

use densely_core::{Error, Result};
use densely_torch_ext::cuda::{Graph, SideStream};
use tch::{Device, Tensor};

/// Steps before the recording: libtorch's libraries set themselves up in the first ones.
const WARM_UP: u32 = 3;

/// Runs steps, and repeats them from a recording as soon as it has one. Batches of another size than the recorded one, such as an
/// epoch's last, run as they are.
#[derive(Debug)]
pub struct StepGraph {
    state: State,
    /// Dropped last: recordings live on its stream.
    side: Option<SideStream>,
}

#[derive(Debug)]
enum State {
    Warm(u32),
    Recorded(Recording),
    /// It could not be recorded, which was said.
    Plain,
}

#[derive(Debug)]
struct Recording {
    /// `None` in a rehearsal.
    graph: Option<Graph>,
    inputs: Vec<Option<Tensor>>,
    outputs: Vec<Tensor>,
}

/// A step: from its inputs to what is wanted of it, such as the loss.
pub type Step<'a> = dyn FnMut(&[Option<Tensor>]) -> Result<Vec<Tensor>> + 'a;

impl StepGraph {
    /// For steps on `device`; from here on this thread's work there goes to a stream of its own.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where no recording is possible, and why.
    pub fn new(device: Device) -> Result<Self> {
        let unsupported = |why: String| Error::Unsupported {
            what: format!("recording steps as a CUDA graph ({why})"),
            hint: "train without `cuda_graph`".to_owned(),
        };
        let Device::Cuda(index) = device else {
            return Err(unsupported("the device is no CUDA device".to_owned()));
        };
        Graph::available().map_err(unsupported)?;
        Ok(Self {
            state: State::Warm(0),
            side: Some(SideStream::new(index).map_err(unsupported)?),
        })
    }

    /// Does all that a recording asks for except the recording: inputs in tensors that stay, numbers staged, results copied. The
    /// step itself is carried out each time. It gives the same bits as plain steps, on any device.
    pub fn rehearsal() -> Self {
        Self {
            state: State::Warm(0),
            side: None,
        }
    }

    /// One step. `step` must come to the same operations each time; random numbers it may draw from libtorch's
    /// generator only.
    ///
    /// # Errors
    /// Those of `step`. A step that cannot be recorded is carried out as it is, as are all after it, and a warning says why.
    pub fn run(&mut self, inputs: &[Option<Tensor>], step: &mut Step) -> Result<Vec<Tensor>> {
        match &mut self.state {
            State::Plain => step(inputs),
            State::Warm(done) if *done < WARM_UP => {
                *done += 1;
                step(inputs)
            }
            State::Warm(_) => match self.record(inputs, step) {
                Ok(recording) => {
                    let outputs = recording.repeat(step)?;
                    self.state = State::Recorded(recording);
                    Ok(outputs)
                }
                Err(error) => {
                    tracing::warn!(
                        "steps are not recorded as a CUDA graph and run one operation at a time: {error}"
                    );
                    self.state = State::Plain;
                    step(inputs)
                }
            },
            State::Recorded(recording) => {
                if recording.take(inputs)? {
                    recording.repeat(step)
                } else {
                    step(inputs)
                }
            }
        }
    }

    /// Whether steps of the recorded size are repeated.
    pub const fn recorded(&self) -> bool {
        matches!(self.state, State::Recorded(_))
    }

    fn record(&self, inputs: &[Option<Tensor>], step: &mut Step) -> Result<Recording> {
        let inputs: Vec<Option<Tensor>> = inputs
            .iter()
            .map(|xs| xs.as_ref().map(Tensor::copy))
            .collect();
        if self.side.is_none() {
            return Ok(Recording {
                graph: None,
                inputs,
                outputs: Vec::new(),
            });
        }
        let (graph, outputs) = Graph::record(|| step(&inputs), Error::torch)?;
        Ok(Recording {
            graph: Some(graph),
            inputs,
            outputs,
        })
    }
}

impl Recording {
    /// Puts `inputs` where the recording reads them; false where they do not fit.
    fn take(&mut self, inputs: &[Option<Tensor>]) -> Result<bool> {
        let form = |xs: &Option<Tensor>| xs.as_ref().map(|xs| (xs.size(), xs.kind()));
        if !self.inputs.iter().map(form).eq(inputs.iter().map(form)) {
            return Ok(false);
        }
        for (mine, given) in self.inputs.iter_mut().zip(inputs) {
            if let (Some(mine), Some(given)) = (mine, given) {
                mine.f_copy_(given)?;
            }
        }
        Ok(true)
    }

    /// Does the recorded step with what its inputs hold. The next one overwrites the outputs: copies leave here.
    fn repeat(&self, step: &mut Step) -> Result<Vec<Tensor>> {
        match &self.graph {
            Some(graph) => {
                graph.replay().map_err(Error::torch)?;
                Ok(self.outputs.iter().map(Tensor::copy).collect())
            }
            None => step(&self.inputs),
        }
    }
}
