"""Goldens of attribution graphs.

Reference: package `circuit-tracer` (0.5.0, `pip install --no-deps circuit-tracer`), run whole on the models of interp_trace.py with random transcoders, in
f64. Writes into crates/interp/tests/goldens/

circuit_<case>.safetensors  config: model, reads (hook point), features, logits, logit_probability, node_share, edge_share, capped (most features) and
                            `file`: the package's own graph file as JSON, texts of tokens being `<number>`
  input.ids [6]             the first one is the package's special token, whose features and errors are no nodes
  transcoder.<l>.<name>     W_enc [d, F], W_dec [F, d], b_enc, b_dec, and W_skip [d, d] where there is a linear way past the features
  active [n, 3], activations [n]    layer, token, feature of all active ones in the order of the rows
  logit.ids, logit.probabilities
  rows [n + logits, nodes]  the adjacency's rows of features and logits
  prune.nodes, prune.edges, prune.cumulative, scores [2]    of the package's prune_graph and compute_graph_scores
  capped.selected, capped.rows      the graph of fewer features: numbers into `active`

circuit_prune.safetensors   the same functions on a made-up graph without circles, of which nothing is near a threshold
  rows, probabilities, influence, prune.nodes, prune.edges, prune.cumulative, scores
"""

import json

import huggingface_hub.constants
import torch
import transformer_lens
from common import goldens, randn, save, setup
from interp_common import LAYERS, doubled, model_of
from lm_common import VOCAB, ids
from lm_hooks import CASES, hooked_config
from torch.nn.functional import relu

# The package asks for a name that newer versions of its dependency lack.
if not hasattr(huggingface_hub.constants, "HF_HUB_ENABLE_HF_TRANSFER"):
    huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER = False

from circuit_tracer.attribution.attribute import attribute  # noqa: E402
from circuit_tracer.graph import Graph, compute_graph_scores, compute_node_influence, prune_graph  # noqa: E402
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel  # noqa: E402
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet  # noqa: E402
from circuit_tracer.utils.create_graph_files import build_model, create_nodes, create_used_nodes_and_edges  # noqa: E402

SCRIPT = "python/goldens/interp_circuit.py"
PACKAGES = ("circuit-tracer", "transformer_lens", "transformers")
FEATURES, LENGTH, LOGITS, PROBABILITY, CAPPED = 10, 6, 4, 0.8, 20
NODE_SHARE, EDGE_SHARE = 0.8, 0.98
READS = {"gpt2": ("ln2.hook_normalized", False), "llama": ("mlp.hook_in", True)}


class Tokenizer:
    """Texts are numbers; 0 is special."""

    all_special_ids, padding_side, vocab_size = (0,), "right", VOCAB

    def decode(self, token) -> str:
        return "".join(f"<{int(one)}>" for one in torch.as_tensor(token).flatten())


def transcoders(case: str, width: int) -> tuple[TranscoderSet, dict[str, torch.Tensor]]:
    reads, skip = READS[case]
    made, tensors = {}, {}
    for layer in range(LAYERS):
        own = SingleLayerTranscoder(width, FEATURES, relu, layer, skip_connection=skip, device="cpu", dtype=torch.float64)
        sizes = {"W_enc": (width, FEATURES), "W_dec": (FEATURES, width), "b_enc": (FEATURES,), "b_dec": (width,)} | ({"W_skip": (width, width)} if skip else {})
        scales = {"W_enc": width**-0.5, "W_dec": 0.5, "b_enc": 0.3, "b_dec": 0.3, "W_skip": 0.5 * width**-0.5}
        for i, (name, size) in enumerate(sizes.items()):
            value = (randn(*size, seed=900 + 10 * layer + i, scale=scales[name]) - (0.7 if name == "b_enc" else 0)).double()
            tensors[f"transcoder.{layer}.{name}"] = value
            with torch.no_grad():
                getattr(own, name).copy_(value.T if name == "W_enc" else value)
        made[layer] = own
    return TranscoderSet(made, reads, "hook_mlp_out", scan="tiny"), tensors


def replaced(case: str) -> tuple[TransformerLensReplacementModel, dict[str, torch.Tensor]]:
    model = model_of(case)
    config = hooked_config(case, model.config)
    config.model_name = "tiny"
    state = {name: value.detach().clone() for name, value in CASES[case](model, config).items()}
    plain = transformer_lens.HookedTransformer(config)
    plain.load_and_process_state_dict(state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
    made, tensors = transcoders(case, config.d_model)
    lens = TransformerLensReplacementModel.from_config(config, made)
    own = dict(plain.state_dict())
    names = {name.replace(".mlp.old_mlp.", ".mlp.").replace("unembed.old_unembed.", "unembed."): name for name in lens.state_dict()}
    lens.load_state_dict({names[name]: value for name, value in own.items() if name in names}, strict=False)
    for block in lens.blocks:
        attn = block.attn
        if hasattr(attn, "rotary_sin"):  # loading has rounded them to f32
            attn.rotary_sin, attn.rotary_cos = attn.calculate_sin_cos_rotary(config.rotary_dim, config.n_ctx, base=config.rotary_base, dtype=torch.float64)
    lens.tokenizer = Tokenizer()
    tokens = prompt()[None]
    with torch.no_grad():
        difference = (lens(tokens) - model(tokens).logits).abs().max()
    assert difference < 1e-10, difference
    return lens.eval(), tensors


def prompt() -> torch.Tensor:
    tokens = ids(LENGTH, seed=61)
    tokens[0] = 0
    return tokens


def rows(graph: Graph) -> torch.Tensor:
    features, logits = len(graph.selected_features), len(graph.logit_targets)
    inner = graph.adjacency_matrix[features:-logits]
    assert not inner.any()
    return torch.cat((graph.adjacency_matrix[:features], graph.adjacency_matrix[-logits:]))


def pruned(graph: Graph) -> tuple[tuple, dict[str, torch.Tensor]]:
    found = prune_graph(graph, NODE_SHARE, EDGE_SHARE)
    features, logits = len(graph.selected_features), len(graph.logit_targets)
    edges = torch.cat((found.edge_mask[:features], found.edge_mask[-logits:]))
    assert edges.sum() == found.edge_mask.sum()
    scores = torch.tensor(compute_graph_scores(graph))
    return found, {"prune.nodes": found.node_mask, "prune.edges": edges, "prune.cumulative": found.cumulative_scores, "scores": scores}


def graph_file(graph: Graph, found) -> dict:
    nodes = create_nodes(graph, found.node_mask, Tokenizer(), found.cumulative_scores.tolist())
    used, edges = create_used_nodes_and_edges(graph, nodes, found.edge_mask)
    return json.loads(build_model(graph, used, edges, "tiny", "tiny", NODE_SHARE, Tokenizer()).model_dump_json())


def write(case: str) -> None:
    with doubled():
        lens, weights = replaced(case)
        options = {"max_n_logits": LOGITS, "desired_logit_prob": PROBABILITY, "batch_size": 7}
        graph = attribute(prompt(), lens, **options)
        fewer = attribute(prompt(), lens, max_feature_nodes=CAPPED, update_interval=1, **options)
        found, tensors = pruned(graph)
        file = graph_file(graph, found)
    tensors |= weights | {
        "input.ids": graph.input_tokens, "active": graph.active_features, "activations": graph.activation_values, "logit.ids": graph.logit_token_ids,
        "logit.probabilities": graph.logit_probabilities, "rows": rows(graph), "capped.selected": fewer.selected_features, "capped.rows": rows(fewer),
    }  # fmt: skip
    assert len(graph.active_features) > CAPPED + 10
    reads, _ = READS[case]
    config = {
        "model": f"model_{case}", "reads": reads, "features": FEATURES, "logits": LOGITS, "logit_probability": PROBABILITY, "node_share": NODE_SHARE,
        "edge_share": EDGE_SHARE, "capped": CAPPED, "capped_batch": 7, "file": file,
    }  # fmt: skip
    save(goldens("interp") / f"circuit_{case}.safetensors", SCRIPT, tensors, config, PACKAGES)


class Sizes:
    """What `Graph` asks of a model's configuration."""

    n_layers = 3


def write_prune() -> None:
    features, tokens, logits, layers = 14, 4, 3, Sizes.n_layers
    nodes = features + layers * tokens + tokens + logits
    with doubled():
        adjacency = torch.zeros(nodes, nodes)
        values = randn(nodes, nodes, seed=71).double()
        # Features read errors, tokens and features of smaller numbers; logits read all but logits.
        for row in range(features):
            adjacency[row, :row] = values[row, :row]
            adjacency[row, features:-logits] = values[row, features:-logits]
        adjacency[-logits:, :-logits] = values[-logits:, :-logits]
        graph = Graph.__new__(Graph)
        graph.__dict__ |= {
            "adjacency_matrix": adjacency, "input_tokens": torch.arange(tokens), "logit_targets": [None] * logits, "selected_features": torch.arange(features),
            "logit_probabilities": torch.tensor([0.5, 0.25, 0.125]), "cfg": Sizes(),
        }  # fmt: skip
        weights = torch.zeros(nodes)
        weights[-logits:] = graph.logit_probabilities
        _, tensors = pruned(graph)
        tensors |= {"rows": rows(graph), "probabilities": graph.logit_probabilities, "influence": compute_node_influence(adjacency, weights)}
    config = {"features": features, "errors": layers * tokens, "tokens": tokens, "logits": logits, "node_share": NODE_SHARE, "edge_share": EDGE_SHARE}
    save(goldens("interp") / "circuit_prune.safetensors", SCRIPT, tensors, config, ("circuit-tracer",))


if __name__ == "__main__":
    setup()
    for case in ("gpt2", "llama"):
        write(case)
    write_prune()
