"""Goldens of the regression on layer and tracing effect.

Reference: package `statsmodels`. Writes crates/interp/tests/goldens/regress_<case>.safetensors, f64:

  layer [n] i64, fraction [n], score [n]
  <design>.r2, .adjusted_r2, .f, .p, .df_model, .df_residual, .coefficients   for the designs
      layer (treatment coded), fraction, sum (layer + fraction), product (layer * fraction)
  sum_over_layer.f, .p, .df and product_over_layer.*   F-tests of the nested pairs
"""

import numpy
import pandas
import torch
from common import goldens, save, setup
from statsmodels.formula.api import ols

DESIGNS = {"layer": "score ~ C(layer)", "fraction": "score ~ fraction", "sum": "score ~ C(layer) + fraction", "product": "score ~ C(layer) * fraction"}


def write(case: str, points: int, layers: list[int], effect: float, noise: float, seed: int) -> None:
    draw = numpy.random.RandomState(seed)
    layer = numpy.repeat(layers, points // len(layers))
    fraction = draw.uniform(size=len(layer)) ** 2
    level = dict(zip(layers, draw.uniform(size=len(layers))))
    score = numpy.array([level[l] for l in layer]) + effect * fraction + noise * draw.randn(len(layer))
    table = pandas.DataFrame({"layer": layer, "fraction": fraction, "score": score})
    fits = {name: ols(formula, table).fit() for name, formula in DESIGNS.items()}
    number = lambda value: torch.tensor(float(value), dtype=torch.float64)
    tensors = {"layer": torch.from_numpy(layer.astype(numpy.int64)), "fraction": torch.from_numpy(fraction), "score": torch.from_numpy(score)}
    for name, fit in fits.items():
        found = {"r2": fit.rsquared, "adjusted_r2": fit.rsquared_adj, "f": fit.fvalue, "p": fit.f_pvalue, "df_model": fit.df_model, "df_residual": fit.df_resid}
        tensors |= {f"{name}.{key}": number(value) for key, value in found.items()}
        tensors[f"{name}.coefficients"] = torch.from_numpy(fit.params.to_numpy().copy())
    for name in ("sum", "product"):
        f, p, df = fits[name].compare_f_test(fits["layer"])
        tensors |= {f"{name}_over_layer.f": number(f), f"{name}_over_layer.p": number(p), f"{name}_over_layer.df": number(df)}
    config = {"layers": layers}
    save(goldens("interp") / f"regress_{case}.safetensors", "python/goldens/interp_regress.py", tensors, config, ("statsmodels", "scipy", "pandas", "numpy"))


if __name__ == "__main__":
    setup()
    write("strong", 210, [0, 4, 8, 12, 16, 20, 24], effect=0.3, noise=0.1, seed=1)
    write("weak", 60, [5, 17, 47], effect=0.02, noise=0.6, seed=2)
    write("two_layers", 24, [3, 9], effect=0.0, noise=1.0, seed=3)
