// Blocks of k members that share a matrix, forward and backward, with nothing of the size of the activations but the activations.
//
//   h = dropout(relu(((x ∘ r) Wᵀ) ∘ s + b))
//
// Rows stand member by member, [k, batch, features], so that r, s and b are constant over a run of rows. Work goes in tiles of about
// 256 rows: scaling, product, scaling, bias, activation and dropout of a tile happen while it lies in the processor's cache.
// Backward: with g = gradient before the activation, everything about the parameters follows from the small matrix G = gᵀ x of each
// member: dW = Σ s rᵀ ∘ G, ds = Σ_in r W G, dr = Σ_out s W G. Neither x ∘ r nor the product is kept or computed again.

#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <array>
#include <cstring>

#include "../bridge.h"
#include "dispatch.h"
#include "forms.h"

namespace densely {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kRows = 256;  // of a tile: 512 KB at width 512, half of a second-level cache

struct Sizes {
  int64_t members, batch, inputs, outputs;
  bool shared_input;  // all members see the same rows
  bool shared_bias;
};

Sizes sizes_of(const Tensor& x, const Tensor& weight, const Tensor& r, const Tensor& s, const Tensor& bias) {
  Sizes size{x.size(0), x.size(1), x.size(2), weight.size(0), false, bias.dim() == 1};
  const int64_t members = r.defined() ? r.size(0) : s.defined() ? s.size(0) : size.shared_bias ? size.members : bias.size(0);
  size.shared_input = size.members == 1 && members > 1;
  size.members = members;
  if (!r.defined() && !s.defined() && size.shared_bias) {  // one plain layer: all rows alike
    size.batch *= size.members;
    size.members = 1;
  }
  return size;
}

/// Rows [first, last) of members [from, to): either one member, or whole members.
struct Tile {
  int64_t from, to, first, last;
  int64_t rows() const { return (to - from) * (last - first); }
  /// Where the tile's rows start in a tensor of all members, or of the one input that they share.
  int64_t start(const Sizes& size, bool shared) const { return shared ? first : from * size.batch + first; }
};

std::vector<Tile> tiles_of(int64_t members, int64_t batch, int64_t threads) {
  std::vector<Tile> tiles;
  if (batch == 0) return tiles;
  if (batch >= kRows) {
    const int64_t chunks = (batch + kRows - 1) / kRows, step = (batch + chunks - 1) / chunks;
    for (int64_t m = 0; m < members; ++m) {
      for (int64_t row = 0; row < batch; row += step) tiles.push_back({m, m + 1, row, std::min(batch, row + step)});
    }
    return tiles;
  }
  const int64_t group = std::max<int64_t>(1, std::min(kRows / batch, (members + threads - 1) / threads));
  for (int64_t m = 0; m < members; m += group) tiles.push_back({m, std::min(members, m + group), 0, batch});
  return tiles;
}

int64_t most_rows(const std::vector<Tile>& tiles) {
  int64_t most = 0;
  for (const Tile& tile : tiles) most = std::max(most, tile.rows());
  return most;
}

/// One block over one tile. `input` points to the tile's first row, `scratch` takes a tile of scaled inputs.
template <typename P, typename A>
void run_block(const Kernels<P, A>& run, const Sizes& size, const Tile& tile, const A* input, const Tensor& weight_t, const P* r, const P* s,
               const P* b, Dropout dropout, A* scratch, A* y) {
  const int64_t rows = tile.last - tile.first;
  if (r || (size.shared_input && tile.to - tile.from > 1)) {
    for (int64_t m = tile.from; m < tile.to; ++m) {
      A* u = scratch + (m - tile.from) * rows * size.inputs;
      const A* from = size.shared_input ? input : input + (m - tile.from) * rows * size.inputs;
      if (r) run.scale(u, from, r + m * size.inputs, rows, size.inputs);
      else std::memcpy(u, from, sizeof(A) * rows * size.inputs);
    }
    input = scratch;
  }
  product<A>(matrix(y, tile.rows(), size.outputs), matrix(input, tile.rows(), size.inputs), weight_t);
  for (int64_t m = tile.from; m < tile.to; ++m) {
    run.finish(y + (m - tile.from) * rows * size.outputs, s ? s + m * size.outputs : nullptr, size.shared_bias ? b : b + m * size.outputs,
               rows, size.outputs, dropout, m * size.batch + tile.first);
  }
}

template <typename P, typename A>
Tensor block_forward(const Tensor& x, const Tensor& weight, const Tensor& r, const Tensor& s, const Tensor& bias, Dropout dropout) {
  const Sizes size = sizes_of(x, weight, r, s, bias);
  const Tensor h = at::empty({size.shared_input ? size.members : x.size(0), x.size(1), size.outputs}, x.options());
  const Tensor weight_t = weight.to(kind_of<A>()).t();
  const auto tiles = tiles_of(size.members, size.batch, at::get_num_threads());
  const auto& run = kernels<P, A>();
  at::parallel_for(0, static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    Plain plain;
    const Tensor scratch = at::empty({r.defined() || size.shared_input ? most_rows(tiles) : 0, size.inputs}, x.options());
    for (int64_t i = begin; i < end; ++i) {
      const Tile& tile = tiles[i];
      run_block<P, A>(run, size, tile, data<A>(x) + tile.start(size, size.shared_input) * size.inputs, weight_t, data<P>(r), data<P>(s),
                      data<P>(bias), dropout, data<A>(scratch), data<A>(h) + tile.start(size, false) * size.outputs);
    }
  });
  return h;
}

struct Gradients {
  Tensor x, weight, r, s, bias;
};

template <typename P, typename A>
Gradients block_backward(const Tensor& dh, const Tensor& x, const Tensor& h, const Tensor& weight, const Tensor& r, const Tensor& s,
                         const Tensor& bias, double scale, bool needs_x) {
  const Sizes size = sizes_of(x, weight, r, s, bias);
  const bool per_member = r.defined() || s.defined();
  const int64_t threads = at::get_num_threads(), in = size.inputs, out = size.outputs;
  const auto params = weight.options();
  const Tensor w = weight.to(kind_of<A>());
  const Tensor dws = at::zeros({threads, out, in}, params), dbs = at::zeros({threads, out}, params);
  Gradients found;
  if (r.defined()) found.r = at::zeros_like(r);
  if (s.defined()) found.s = at::zeros_like(s);
  found.bias = at::zeros_like(bias);
  // A shared input gathers its gradient from all members: in the parameters' kind, one sum per thread.
  Tensor dxs;
  if (needs_x && size.shared_input) dxs = at::zeros({threads, size.batch, in}, params);
  else if (needs_x) found.x = at::empty_like(x);

  // One member with all its rows is the unit of work where members differ; else any rows are.
  const int64_t step = std::min(size.batch, kRows);
  const int64_t chunks = step == 0 ? 0 : (size.batch + step - 1) / step;
  const bool by_rows = size.members == 1 && !per_member;
  const int64_t units = by_rows ? chunks : size.members;
  const auto& run = kernels<P, A>();
  at::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    Plain plain;
    const int64_t thread = at::get_thread_num();
    const Tensor g = at::empty({step, out}, x.options());
    const Tensor gs = s.defined() ? at::empty_like(g) : g;
    const Tensor gram = at::empty({out, in}, x.options());
    const Tensor dx_tile = needs_x && size.shared_input ? at::empty({step, in}, x.options()) : Tensor();
    P* dw = data<P>(dws) + thread * out * in;
    const Tensor dw_matrix = matrix(dw, out, in);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t m = by_rows ? 0 : unit;
      const P* s_m = s.defined() ? data<P>(s) + m * out : nullptr;
      const P* r_m = r.defined() ? data<P>(r) + m * in : nullptr;
      // Work that runs in one member by rows shares the bias's sum between threads.
      P* db = size.shared_bias || by_rows ? data<P>(dbs) + thread * out : data<P>(found.bias) + m * out;
      for (int64_t chunk = by_rows ? unit : 0; chunk < (by_rows ? unit + 1 : chunks); ++chunk) {
        const int64_t first = chunk * step, rows = std::min(step, size.batch - first);
        const int64_t row = m * size.batch + first;
        const A* xs = data<A>(x) + (size.shared_input ? first : row) * in;
        run.gate(data<A>(g), data<A>(gs), db, data<A>(dh) + row * out, data<A>(h) + row * out, s_m, rows, out, static_cast<P>(scale));
        const Tensor g_t = matrix(data<A>(g), rows, out).t(), xs_matrix = matrix(xs, rows, in);
        if (per_member) {
          product<A>(gram, g_t, xs_matrix, chunk > 0);
        } else if (std::is_same_v<P, A>) {
          product<A>(dw_matrix, g_t, xs_matrix, true);
        } else {
          product<A>(gram, g_t, xs_matrix);
          run.combine(dw, nullptr, nullptr, data<A>(gram), data<P>(weight), nullptr, nullptr, out, in);
        }
        if (needs_x) {
          const Tensor dx = size.shared_input ? matrix(data<A>(dx_tile), rows, in) : matrix(data<A>(found.x) + row * in, rows, in);
          product<A>(dx, matrix(data<A>(gs), rows, out), w);
          if (size.shared_input) run.add_scaled(data<P>(dxs) + (thread * size.batch + first) * in, data<A>(dx), r_m, rows, in);
          else if (r_m) run.scale(data<A>(dx), data<A>(dx), r_m, rows, in);
        }
      }
      if (per_member) {
        run.combine(dw, r_m ? data<P>(found.r) + m * in : nullptr, s_m ? data<P>(found.s) + m * out : nullptr, data<A>(gram), data<P>(weight), r_m,
                    s_m, out, in);
      }
    }
  });
  found.weight = threads == 1 ? dws[0] : dws.sum(0);
  if (size.shared_bias || by_rows) found.bias.copy_((threads == 1 ? dbs[0] : dbs.sum(0)).view_as(found.bias));
  if (dxs.defined()) found.x = (threads == 1 ? dxs[0] : dxs.sum(0)).to(x.scalar_type()).view_as(x);
  return found;
}

/// Calls `f` with the kinds of parameters and activations as types.
template <typename F>
auto with_kinds(at::ScalarType params, at::ScalarType activations, F f) {
  if (params == at::kFloat && activations == at::kFloat) return f(float{}, float{});
  if (params == at::kDouble && activations == at::kDouble) return f(double{}, double{});
  TORCH_CHECK(params == at::kFloat && activations == at::kBFloat16, "a block of members takes f32, f64, or f32 with bf16 activations");
  return f(float{}, Bf16{});
}

class Block : public torch::autograd::Function<Block> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& r_or_none,
                        const std::optional<Tensor>& s_or_none, const Tensor& bias, double p, int64_t seed) {
    const Tensor r = r_or_none.value_or(Tensor()), s = s_or_none.value_or(Tensor());
    const Dropout dropout = dropout_of(p, seed);
    const Tensor h = with_kinds(weight.scalar_type(), x.scalar_type(), [&](auto param, auto activation) {
      return block_forward<decltype(param), decltype(activation)>(x, weight, r, s, bias, dropout);
    });
    context->save_for_backward({x, weight, r, s, bias, h});
    context->saved_data["scale"] = dropout.scale;
    return h;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "a fused block has no second derivatives; switch the fast paths off");
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const Tensor dh = grads[0].to(x.scalar_type()).contiguous();
    const double scale = context->saved_data["scale"].toDouble();
    const bool needs_x = context->needs_input_grad(0);
    Gradients found = with_kinds(weight.scalar_type(), x.scalar_type(), [&](auto param, auto activation) {
      return block_backward<decltype(param), decltype(activation)>(dh, x, saved[5], weight, saved[2], saved[3], saved[4], scale, needs_x);
    });
    return {found.x, found.weight, found.r, found.s, found.bias, Tensor(), Tensor()};
  }
};

/// The kind in which matrix products run: autocast's, where it is on.
at::ScalarType compute_kind(const Tensor& weight) {
  return at::autocast::is_autocast_enabled(at::kCPU) ? at::autocast::get_autocast_dtype(at::kCPU) : weight.scalar_type();
}

Tensor contiguous(size_t pointer) {
  const Tensor& xs = tensor(pointer);
  return xs.defined() ? xs.contiguous() : xs;
}

void check_block(const Tensor& x, const Tensor& weight, const Tensor& r, const Tensor& s, const Tensor& bias) {
  TORCH_CHECK(x.dim() == 3 && weight.dim() == 2 && x.size(2) == weight.size(1), "x [k, batch, in] must fit weight [out, in]");
  TORCH_CHECK(bias.defined() && bias.size(-1) == weight.size(0), "bias must fit weight");
  int64_t members = x.size(0);
  for (const Tensor* per_member : {&r, &s, &bias}) {
    if (!per_member->defined() || per_member->dim() == 1) continue;
    TORCH_CHECK(members == 1 || per_member->size(0) == members, "members do not agree");
    members = per_member->size(0);
    TORCH_CHECK(per_member->scalar_type() == weight.scalar_type(), "parameters must be of one kind");
  }
  TORCH_CHECK(!r.defined() || (r.dim() == 2 && r.size(1) == weight.size(1)), "r must be [k, in]");
  TORCH_CHECK(!s.defined() || (s.dim() == 2 && s.size(1) == weight.size(0)), "s must be [k, out]");
}

/// All blocks and the head over tiles: activations never leave the cache.
template <typename P, typename A>
Tensor infer(const Tensor& x, const std::vector<std::array<Tensor, 4>>& blocks, const Tensor& head_weight, const Tensor& head_bias) {
  const int64_t members = head_weight.size(0), batch = x.size(1), outputs = head_weight.size(2);
  const auto& run = kernels<P, A>();
  const Tensor y = at::empty({batch, members, outputs}, head_weight.options());
  const Tensor head_t = head_weight.transpose(1, 2).contiguous();  // [k, out, in]
  std::vector<Sizes> sizes;
  std::vector<Tensor> weights;
  int64_t width = x.size(2);
  for (const auto& [weight, r, s, bias] : blocks) {
    Sizes size{members, batch, weight.size(1), weight.size(0), sizes.empty() && x.size(0) == 1, bias.dim() == 1};
    width = std::max(width, size.outputs);
    sizes.push_back(size);
  }
  const auto tiles = tiles_of(members, batch, at::get_num_threads());
  const int64_t most = most_rows(tiles);
  for (const auto& [weight, r, s, bias] : blocks) {
    const auto pays = [&, &weight = weight](bool transposed) { return onednn_pays(most, weight.size(0), weight.size(1), false, transposed); };
    // Where rows are few, a product that finds the matrix the right way round is noticeably faster; in bf16, one that finds it cast.
    const bool kept = std::is_same_v<A, Bf16> || (pays(false) && !pays(true));
    weights.push_back(kept ? forms().transposed(weight, kind_of<A>()) : weight.t());
  }
  at::parallel_for(0, static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    Plain plain;
    const auto options = x.options();
    const Tensor scratch = at::empty({most, width}, options), here = at::empty_like(scratch), there = at::empty_like(scratch);
    for (int64_t i = begin; i < end; ++i) {
      const Tile& tile = tiles[i];
      const int64_t rows = tile.last - tile.first;
      const A* input = data<A>(x) + tile.start(sizes[0], sizes[0].shared_input) * sizes[0].inputs;
      A *to = data<A>(here), *other = data<A>(there);
      for (size_t layer = 0; layer < blocks.size(); ++layer) {
        const auto& [weight, r, s, bias] = blocks[layer];
        run_block<P, A>(run, sizes[layer], tile, input, weights[layer], data<P>(r), data<P>(s), data<P>(bias), Dropout{0, 0, 1.0},
                        data<A>(scratch), to);
        input = to;
        std::swap(to, other);
      }
      const int64_t last = head_t.size(2);
      for (int64_t m = tile.from; m < tile.to; ++m) {
        run.head(data<P>(y) + (tile.first * members + m) * outputs, members * outputs, input + (m - tile.from) * rows * last,
                 data<P>(head_t) + m * outputs * last, data<P>(head_bias) + m * outputs, rows, last, outputs);
      }
    }
  });
  return y;
}

}  // namespace

size_t members_block(size_t x, size_t weight, size_t r, size_t s, size_t bias, double p, int64_t seed) {
  const Tensor w = contiguous(weight), rs = contiguous(r), ss = contiguous(s), b = contiguous(bias);
  const Tensor& xs = tensor(x);
  check_block(xs, w, rs, ss, b);
  return handle(Block::apply(xs.to(compute_kind(w)).contiguous(), w, optional(rs), optional(ss), b, p, seed));
}

size_t members_infer(size_t x, rust::Slice<const size_t> blocks, size_t head_weight, size_t head_bias) {
  at::NoGradGuard no_grad;
  std::vector<std::array<Tensor, 4>> layers;
  TORCH_CHECK(blocks.size() > 0 && blocks.size() % 4 == 0, "weight, r, s and bias of each block are expected");
  for (size_t i = 0; i < blocks.size(); i += 4) {
    layers.push_back({contiguous(blocks[i]), contiguous(blocks[i + 1]), contiguous(blocks[i + 2]), contiguous(blocks[i + 3])});
  }
  const Tensor hw = contiguous(head_weight), hb = contiguous(head_bias);
  const Tensor xs = tensor(x).to(compute_kind(hw)).contiguous();
  int64_t width = xs.size(2);
  for (const auto& [weight, r, s, bias] : layers) {
    TORCH_CHECK(weight.dim() == 2 && weight.size(1) == width, "each block must fit the one before");
    TORCH_CHECK((!r.defined() || r.size(0) == hw.size(0)) && (!s.defined() || s.size(0) == hw.size(0)), "members do not agree");
    TORCH_CHECK(xs.size(0) == 1 || xs.size(0) == hw.size(0), "members do not agree");
    width = weight.size(0);
  }
  TORCH_CHECK(hw.dim() == 3 && hw.size(1) == width && hb.dim() == 2, "the head must fit the last block");
  return with_kinds(hw.scalar_type(), xs.scalar_type(), [&](auto param, auto activation) {
    return handle(infer<decltype(param), decltype(activation)>(xs, layers, hw, hb));
  });
}

}  // namespace densely
