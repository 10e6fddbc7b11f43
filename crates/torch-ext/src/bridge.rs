//! The Rust side of `bridge.h`.

#[cxx::bridge(namespace = "densely")]
pub(crate) mod ffi {
    unsafe extern "C++" {
        include!("bridge.h");

        fn autocast_enabled(device: i8) -> Result<bool>;
        fn autocast_dtype(device: i8) -> Result<i8>;
        fn set_autocast(device: i8, enabled: bool, dtype: i8) -> Result<()>;
        fn enter_autocast() -> Result<()>;
        fn leave_autocast() -> Result<()>;

        fn grad_enabled() -> bool;
        fn release_memory();
        fn idle_memory() -> usize;
        fn enter_inference() -> Result<usize>;
        /// # Safety
        /// The number must come from `enter_inference` of this thread and be handed in once.
        unsafe fn leave_inference(guard: usize);

        fn enter_side_stream(index: i8) -> Result<usize>;
        /// # Safety
        /// The number must come from `enter_side_stream` of this thread and be handed in once.
        unsafe fn leave_side_stream(side: usize) -> Result<()>;
        fn start_timer(index: i8) -> Result<usize>;
        /// # Safety
        /// The number must come from `start_timer` and not have been freed.
        unsafe fn stop_timer(timer: usize, index: i8) -> Result<()>;
        /// # Safety
        /// As of `stop_timer`.
        unsafe fn read_timer(timer: usize) -> Result<f64>;
        /// # Safety
        /// As of `stop_timer`; the timer is gone afterwards.
        unsafe fn free_timer(timer: usize) -> Result<()>;
        fn record_operations() -> Result<usize>;
        fn stop_recording(callback: usize) -> Result<Vec<String>>;
        fn compute_alone();

        /// # Safety
        /// Every number is 0 or the address of a live `at::Tensor`.
        unsafe fn fused_adam(
            params: &[usize],
            grads: &[usize],
            exp_avgs: &[usize],
            exp_avg_sqs: &[usize],
            steps: &[usize],
            lr: f64,
            beta1: f64,
            beta2: f64,
            weight_decay: f64,
            eps: f64,
            decoupled: bool,
            device_lr: usize,
        ) -> Result<()>;
        /// # Safety
        /// Every number is the address of a live `at::Tensor`.
        unsafe fn fused_sgd(
            params: &[usize],
            grads: &[usize],
            buffers: &[usize],
            weight_decay: f64,
            momentum: f64,
            lr: f64,
            dampening: f64,
            nesterov: bool,
            first: bool,
            device_lr: usize,
        ) -> Result<()>;
        /// # Safety
        /// Every number is the address of a live `at::Tensor`.
        unsafe fn clip_grads(grads: &[usize], max_norm: f64) -> Result<usize>;
        /// # Safety
        /// Every number is the address of a live `at::Tensor`.
        unsafe fn unscale_grads(grads: &[usize], factor: f64) -> Result<bool>;
        /// # Safety
        /// Every number is the address of a live `at::Tensor`.
        unsafe fn clear_grads(params: &[usize]) -> Result<()>;

        /// # Safety
        /// Every number is 0 or the address of a live `at::Tensor`.
        unsafe fn members_block(
            x: usize,
            weight: usize,
            r: usize,
            s: usize,
            bias: usize,
            p: f64,
            seed: i64,
        ) -> Result<usize>;
        /// # Safety
        /// Every number is 0 or the address of a live `at::Tensor`.
        unsafe fn members_infer(
            x: usize,
            blocks: &[usize],
            head_weight: usize,
            head_bias: usize,
        ) -> Result<usize>;
        /// # Safety
        /// Every number is 0 or the address of a live `at::Tensor`.
        unsafe fn piecewise_embed(
            x: usize,
            slope: usize,
            shift: usize,
            bins: usize,
            weight: usize,
            bias: usize,
            weight0: usize,
            bias0: usize,
            relu: bool,
        ) -> Result<usize>;

        /// # Safety
        /// Every number of `x`, `layers` and `norm` is 0 or the address of a live `at::Tensor`.
        unsafe fn mixer_block(
            x: usize,
            layers: &[usize],
            norm: &[usize],
            eps: f64,
            momentum: f64,
            p: f64,
            seed: i64,
            train: bool,
        ) -> Result<usize>;

        /// # Safety
        /// Every number is 0 or the address of a live `at::Tensor`.
        unsafe fn table_squares(
            w: usize,
            dense: usize,
            index: usize,
            values: usize,
            extra: usize,
            l1: f64,
            l2: f64,
            all: bool,
        ) -> Result<f64>;
        /// # Safety
        /// Every number is 0 or the address of a live `at::Tensor`.
        unsafe fn table_step(
            w: usize,
            dense: usize,
            index: usize,
            values: usize,
            extra: usize,
            first: usize,
            second: usize,
            numbers: &[f64],
            adagrad: bool,
            all: bool,
        ) -> Result<()>;
        /// # Safety
        /// Every number is 0 or the address of a live `at::Tensor`.
        unsafe fn linear(x: usize, weight: usize, bias: usize) -> Result<usize>;
        /// # Safety
        /// Every number is the address of a live `at::Tensor`.
        unsafe fn dice(
            x: usize,
            alpha: usize,
            running_mean: usize,
            running_variance: usize,
            eps: f64,
            momentum: f64,
            train: bool,
        ) -> Result<usize>;
        /// # Safety
        /// Every number is 0 or the address of a live `at::Tensor`.
        unsafe fn dice_onto(
            x: usize,
            by_step: usize,
            by_row: usize,
            alpha: usize,
            running_mean: usize,
            running_variance: usize,
            eps: f64,
        ) -> Result<()>;
        /// # Safety
        /// Every number is the address of a live `at::Tensor`.
        unsafe fn norm_relu(
            x: usize,
            gamma: usize,
            beta: usize,
            running_mean: usize,
            running_variance: usize,
            eps: f64,
            momentum: f64,
            p: f64,
            seed: i64,
            train: bool,
        ) -> Result<usize>;
        /// # Safety
        /// The number is the address of a live `at::Tensor`.
        unsafe fn dropout(x: usize, p: f64, seed: i64) -> Result<usize>;
        /// # Safety
        /// Every number is the address of a live `at::Tensor`.
        unsafe fn bilinear(
            x: usize,
            y: usize,
            form: usize,
            left: usize,
            right: usize,
        ) -> Result<usize>;
        /// # Safety
        /// Both `coords` and `table` are the addresses of live `at::Tensor`s.
        unsafe fn hash_grid(
            coords: usize,
            table: usize,
            numbers: &[i64],
            scales: &[f64],
            features: i64,
            smooth: bool,
        ) -> Result<usize>;
        /// # Safety
        /// Every number but the limits is the address of a live `at::Tensor`.
        unsafe fn sum_rows(ids: &[usize], values: &[usize], limits: &[i64]) -> Result<Vec<usize>>;
        /// # Safety
        /// `ids` is the address of a live `at::Tensor`.
        unsafe fn distinct(ids: usize, limit: i64) -> Result<Vec<usize>>;
        /// # Safety
        /// Both numbers are the addresses of live `at::Tensor`s.
        unsafe fn repeat_rows(rows: usize, place: usize) -> Result<usize>;
        /// # Safety
        /// Every number but `k` is 0 or the address of a live `at::Tensor`.
        unsafe fn sparse_encode(
            x: usize,
            weight: usize,
            bias: usize,
            select: i8,
            k: i64,
            bound: usize,
            scale: usize,
            most: f64,
        ) -> Result<Vec<usize>>;
        /// # Safety
        /// Every number is the address of a live `at::Tensor`.
        unsafe fn sparse_decode(
            values: usize,
            offsets: usize,
            columns: usize,
            weight: usize,
        ) -> Result<usize>;

        /// # Safety
        /// Every number of `x`, `params` and the shares is 0 or the address of a live `at::Tensor`.
        unsafe fn pool_block(
            x: usize,
            params: &[usize],
            kept1: usize,
            kept2: usize,
            eps: f64,
        ) -> Result<usize>;
        /// # Safety
        /// Every number of `x` and `params` is the address of a live `at::Tensor`.
        unsafe fn pool_stage(x: usize, params: &[usize], halves: bool, eps: f64) -> Result<usize>;
        fn pool_halves() -> Result<bool>;
        /// # Safety
        /// Every number of `tensors` is 0 or the address of a live `at::Tensor`, and `like` is one.
        unsafe fn pixel_steps(
            numbers: &[i64],
            tensors: &[usize],
            eps: &[f64],
            like: usize,
            tile_rows: i64,
        ) -> Result<Vec<usize>>;
        /// # Safety
        /// Every number but eps and side is 0 or the address of a live `at::Tensor`.
        unsafe fn pixel_mix(
            v: usize,
            gate: usize,
            weight: usize,
            bias: usize,
            gamma: usize,
            beta: usize,
            eps: f64,
            side: i64,
            grid: bool,
        ) -> Result<usize>;

        /// # Safety
        /// Every number is the address of a live `at::Tensor`.
        unsafe fn render_rays(
            sigma: usize,
            rgb: usize,
            start: usize,
            end: usize,
            offsets: usize,
        ) -> Result<Vec<usize>>;
        /// # Safety
        /// Every number but the last two is the address of a live `at::Tensor`.
        unsafe fn visible_samples(
            sigma: usize,
            start: usize,
            end: usize,
            offsets: usize,
            least_passing: f64,
            least_alpha: f64,
        ) -> Result<usize>;
        /// # Safety
        /// Every number of `x` and `params` is the address of a live `at::Tensor`; there are two for each frequency, and two or none more.
        unsafe fn sine_layers(
            x: usize,
            params: &[usize],
            omegas: &[f64],
            form: i8,
            head_scale: f64,
        ) -> Result<usize>;
        /// # Safety
        /// Every number of `x`, `coords` and `params` is the address of a live `at::Tensor`; there are three for each layer, and two or none
        /// more.
        unsafe fn modulated_layers(
            x: usize,
            coords: usize,
            params: &[usize],
            layers: i64,
            eps: f64,
            relu: bool,
        ) -> Result<usize>;
        /// # Safety
        /// Every number is the address of a live `at::Tensor`.
        unsafe fn patch_block(
            x: usize,
            params: &[usize],
            eps: f64,
            p: f64,
            seed: i64,
            along_features: bool,
        ) -> Result<usize>;
    }
}
