// What libtorch exports and tch does not bind, and the fused operations. Devices and kinds are the numbers of c10::DeviceType and
// c10::ScalarType. A tensor is the address of an at::Tensor, 0 for none; a returned one belongs to the caller.
#pragma once
#include <cstddef>
#include <cstdint>

#include "rust/cxx.h"

namespace densely {

bool autocast_enabled(int8_t device);
int8_t autocast_dtype(int8_t device);
void set_autocast(int8_t device, bool enabled, int8_t dtype);
void enter_autocast();
void leave_autocast();

bool grad_enabled();
void release_memory();
size_t idle_memory();
size_t enter_inference();
void leave_inference(size_t guard);

size_t enter_side_stream(int8_t index);
void leave_side_stream(size_t side);
size_t start_timer(int8_t index);
void stop_timer(size_t timer, int8_t index);
double read_timer(size_t timer);
void free_timer(size_t timer);
size_t record_operations();
rust::Vec<rust::String> stop_recording(size_t callback);
void compute_alone();

void fused_adam(rust::Slice<const size_t> params, rust::Slice<const size_t> grads, rust::Slice<const size_t> exp_avgs,
                rust::Slice<const size_t> exp_avg_sqs, rust::Slice<const size_t> steps, double lr, double beta1, double beta2,
                double weight_decay, double eps, bool decoupled, size_t device_lr);
void fused_sgd(rust::Slice<const size_t> params, rust::Slice<const size_t> grads, rust::Slice<const size_t> buffers, double weight_decay,
               double momentum, double lr, double dampening, bool nesterov, bool first, size_t device_lr);
size_t clip_grads(rust::Slice<const size_t> grads, double max_norm);
bool unscale_grads(rust::Slice<const size_t> grads, double factor);
void clear_grads(rust::Slice<const size_t> params);

size_t members_block(size_t x, size_t weight, size_t r, size_t s, size_t bias, double p, int64_t seed);
size_t members_infer(size_t x, rust::Slice<const size_t> blocks, size_t head_weight, size_t head_bias);
size_t piecewise_embed(size_t x, size_t slope, size_t shift, size_t bins, size_t weight, size_t bias, size_t weight0, size_t bias0,
                       bool relu);
size_t mixer_block(size_t x, rust::Slice<const size_t> layers, rust::Slice<const size_t> norm, double eps, double momentum, double p, int64_t seed,
                   bool train);
double table_squares(size_t w, size_t dense, size_t index, size_t values, size_t extra, double l1, double l2, bool all);
void table_step(size_t w, size_t dense, size_t index, size_t values, size_t extra, size_t first, size_t second, rust::Slice<const double> numbers, bool adagrad,
                bool all);
size_t linear(size_t x, size_t weight, size_t bias);
size_t dice(size_t x, size_t alpha, size_t running_mean, size_t running_variance, double eps, double momentum, bool train);
void dice_onto(size_t x, size_t by_step, size_t by_row, size_t alpha, size_t running_mean, size_t running_variance, double eps);
size_t norm_relu(size_t x, size_t gamma, size_t beta, size_t running_mean, size_t running_variance, double eps, double momentum, double p, int64_t seed,
                 bool train);
size_t dropout(size_t x, double p, int64_t seed);
size_t bilinear(size_t x, size_t y, size_t form, size_t left, size_t right);
size_t hash_grid(size_t coords, size_t table, rust::Slice<const int64_t> numbers, rust::Slice<const double> scales, int64_t features, bool smooth);
rust::Vec<size_t> sum_rows(rust::Slice<const size_t> ids, rust::Slice<const size_t> values, rust::Slice<const int64_t> limits);
rust::Vec<size_t> distinct(size_t ids, int64_t limit);
size_t repeat_rows(size_t rows, size_t place);
rust::Vec<size_t> sparse_encode(size_t x, size_t weight, size_t bias, int8_t select, int64_t k, size_t bound, size_t scale, double most);
size_t sparse_decode(size_t values, size_t offsets, size_t columns, size_t weight);
size_t pool_block(size_t x, rust::Slice<const size_t> params, size_t kept1, size_t kept2, double eps);
size_t pool_stage(size_t x, rust::Slice<const size_t> params, bool halves, double eps);
bool pool_halves();
rust::Vec<size_t> pixel_steps(rust::Slice<const int64_t> numbers, rust::Slice<const size_t> tensors, rust::Slice<const double> eps, size_t like,
                              int64_t tile_rows);
size_t pixel_mix(size_t v, size_t gate, size_t weight, size_t bias, size_t gamma, size_t beta, double eps, int64_t side, bool grid);
rust::Vec<size_t> render_rays(size_t sigma, size_t rgb, size_t start, size_t end, size_t offsets);
size_t visible_samples(size_t sigma, size_t start, size_t end, size_t offsets, double least_passing, double least_alpha);
size_t sine_layers(size_t x, rust::Slice<const size_t> params, rust::Slice<const double> omegas, int8_t form, double head_scale);
size_t modulated_layers(size_t x, size_t coords, rust::Slice<const size_t> params, int64_t layers, double eps, bool relu);
size_t patch_block(size_t x, rust::Slice<const size_t> params, double eps, double p, int64_t seed, bool along_features);

}  // namespace densely
