//! Regressions by hand, and designs that cannot be fitted whole. Random data against statsmodels are in the goldens.

use densely_core::Result;
use densely_interp::regress::{
    Column, Design, columns, correlation, f_upper_tail, fit, least_squares,
};

fn near(found: f64, expected: f64) {
    let error = (found - expected).abs();
    assert!(
        error <= 1e-12 * expected.abs().max(1.0),
        "{found}, expected {expected}"
    );
}

fn column(values: &[f64]) -> Column {
    Column {
        name: "x".to_owned(),
        values: values.to_vec(),
    }
}

#[test]
fn a_line_by_hand() -> Result<()> {
    // Means 3 and 3; Sxx = 10, Sxy = 8, Syy = 10: slope 0.8, R² = 64 / 100, F = 6.4 / (3.6 / 3).
    let x = column(&[1.0, 2.0, 3.0, 4.0, 5.0]);
    let found = least_squares(&[x], &[1.0, 3.0, 2.0, 5.0, 4.0])?;
    near(found.coefficients[0].1, 0.6);
    near(found.coefficients[1].1, 0.8);
    near(found.r2.unwrap_or(f64::NAN), 0.64);
    near(
        found.adjusted_r2.unwrap_or(f64::NAN),
        1.0 - 0.36 * 4.0 / 3.0,
    );
    near(found.f.unwrap_or(f64::NAN), 16.0 / 3.0);
    // Two-sided p of t = √(16/3) with 3 degrees: 1 - (2/π)(θ + sin θ cos θ) with θ = atan(t / √3).
    let theta = (16.0f64 / 9.0).sqrt().atan();
    let p = 1.0 - (theta + theta.sin() * theta.cos()) * 2.0 / std::f64::consts::PI;
    near(found.p.unwrap_or(f64::NAN), p);
    assert_eq!((found.df_model, found.df_residual), (1, 3));
    Ok(())
}

#[test]
fn layers_are_means_against_the_first() -> Result<()> {
    let (layers, effects) = ([4, 4, 4, 9, 9, 9], [0.0, 0.1, 0.2, 0.2, 0.3, 0.1]);
    let scores = [1.0, 2.0, 3.0, 4.0, 5.0, 7.0];
    let found = fit(Design::Layer, &layers, &effects, &scores)?;
    let names: Vec<&str> = found.coefficients.iter().map(|c| c.0.as_str()).collect();
    assert_eq!(names, ["Intercept", "layer[9]"]);
    near(found.coefficients[0].1, 2.0);
    near(found.coefficients[1].1, 16.0 / 3.0 - 2.0);
    // 70/3 in all, 20/3 within the layers.
    near(found.r2.unwrap_or(f64::NAN), 5.0 / 7.0);
    near(found.f.unwrap_or(f64::NAN), 10.0);
    let both = fit(Design::Product, &layers, &effects, &scores)?;
    let names: Vec<&str> = both.coefficients.iter().map(|c| c.0.as_str()).collect();
    assert_eq!(
        names,
        ["Intercept", "layer[9]", "fraction", "layer[9]:fraction"]
    );
    // Layer 4 lies on a line of slope 10; of layer 9 the points (0.2, 4), (0.3, 5), (0.1, 7) have slope -10.
    near(both.coefficients[2].1, 10.0);
    near(both.coefficients[3].1, -20.0);
    // Left: 4² + … of layer 9 alone: 14/3 - 0.02 · 100.
    near(both.residual, 14.0 / 3.0 - 2.0);
    let nested = both.over(&found)?.expect("further columns");
    assert_eq!(nested.df, 2);
    near(nested.f, (20.0 / 3.0 - 8.0 / 3.0) / 2.0 / (8.0 / 3.0 / 2.0));
    // With two further columns the tail is (1 + 2F / d)^(-d / 2).
    near(nested.p, 1.0 / (1.0 + 2.0 * nested.f / 2.0));
    Ok(())
}

#[test]
fn singular_designs_are_fitted_without_what_is_superfluous() -> Result<()> {
    let layers = [1, 1, 1, 2, 2, 2];
    let scores = [1.0, 2.0, 3.0, 4.0, 5.0, 7.0];
    // An effect that does not vary is the intercept again.
    let both = fit(Design::Product, &layers, &[0.0; 6], &scores)?;
    assert_eq!(both.dropped, ["fraction", "layer[2]:fraction"]);
    let layer = fit(Design::Layer, &layers, &[0.0; 6], &scores)?;
    assert_eq!(both.r2, layer.r2);
    assert_eq!(both.over(&layer)?, None);
    let alone = fit(Design::Trace, &layers, &[0.5; 6], &scores)?;
    assert_eq!((alone.dropped.len(), alone.df_model), (1, 0));
    near(alone.r2.unwrap_or(f64::NAN), 0.0);
    assert_eq!((alone.f, alone.p), (None, None));

    // One layer has nothing to be compared with.
    let one = fit(
        Design::Layer,
        &[3; 4],
        &[0.1, 0.2, 0.3, 0.4],
        &[1.0, 2.0, 1.0, 2.0],
    )?;
    assert_eq!(one.df_model, 0);
    // Scores that are all the same have no variance to explain.
    let flat = fit(
        Design::Sum,
        &layers,
        &[0.1, 0.2, 0.3, 0.1, 0.5, 0.2],
        &[0.7; 6],
    )?;
    assert_eq!((flat.r2, flat.f), (None, None));
    // As many columns as points.
    let x = column(&[1.0, 2.0]);
    let full = least_squares(&[x], &[3.0, 5.0])?;
    assert_eq!(
        (full.df_residual, full.f, full.adjusted_r2),
        (0, None, None)
    );
    near(full.r2.unwrap_or(f64::NAN), 1.0);
    Ok(())
}

#[test]
fn wrong_tables_are_refused() {
    assert!(least_squares(&[], &[]).is_err());
    assert!(least_squares(&[column(&[1.0])], &[1.0, 2.0]).is_err());
    assert!(least_squares(&[column(&[1.0, f64::NAN])], &[1.0, 2.0]).is_err());
    assert!(columns(Design::Sum, &[1, 2], &[0.1]).is_err());
}

#[test]
fn tails_and_intervals_have_their_known_values() {
    // F of 2 and d degrees: (1 + 2f / d)^(-d / 2).
    for (f, d) in [(0.3, 4.0), (3.0, 10.0), (25.0, 200.0)] {
        let expected = (1.0f64 + 2.0 * f / d).powf(-d / 2.0);
        let error = (f_upper_tail(f, 2.0, d) / expected - 1.0).abs();
        assert!(error < 1e-11, "{f}, {d}: {error}");
    }
    near(f_upper_tail(0.0, 3.0, 5.0), 1.0);
    near(f_upper_tail(f64::INFINITY, 3.0, 5.0), 0.0);

    let found = correlation(&[1.0, 2.0, 3.0, 4.0, 5.0], &[1.0, 3.0, 2.0, 5.0, 4.0]);
    let found = found.expect("both vary");
    near(found.r, 0.8);
    let half = 1.959_963_984_540_054 / 2.0f64.sqrt();
    near(found.low, (0.8f64.atanh() - half).tanh());
    near(found.high, (0.8f64.atanh() + half).tanh());
    assert_eq!(correlation(&[1.0, 1.0, 1.0], &[1.0, 2.0, 3.0]), None);
    assert_eq!(correlation(&[1.0], &[1.0]), None);
    let few = correlation(&[1.0, 2.0, 4.0], &[1.0, 2.0, 3.0]).expect("both vary");
    near(few.low, -1.0);
}
