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
    }
}
