"""Goldens of the forecasting metrics: package `utilsforecast` where it has them, NumPy for what M4 alone has.

Writes crates/timeseries/tests/goldens/metrics.json: series (season, history, future, forecast, quantile forecasts), each with `seasonal`
(M4's test) and `naive2`, and over all of them mae, rmse, mape, smape, mase, pinball, crps, owa. Percentages are in percent, as in M4;
the package gives shares. Naive2 follows the organisers' R code (SeasonalityTest, stats::decompose), written anew on NumPy.
"""

import json
import math

import numpy as np
import pandas as pd
from common import goldens, versions
from utilsforecast import losses

SCRIPT = "python/goldens/timeseries_metrics.py"
HORIZON = 7
LEVELS = [0.1, 0.25, 0.5, 0.8, 0.9]


def seasonal(history: np.ndarray, season: int) -> bool:
    n = len(history)
    if season < 2 or n < 3 * season or season > math.floor(10 * math.log10(n)):
        return False
    centred = history - history.mean()
    acf = np.correlate(centred, centred, "full")[n - 1 :] / np.sum(centred**2)
    limit = 1.645 / math.sqrt(n) * np.sqrt(np.cumsum(np.concatenate(([1.0], 2 * acf[1:] ** 2))))
    return bool(abs(acf[season]) > limit[season - 1])


def naive2(history: np.ndarray, season: int) -> np.ndarray:
    if not seasonal(history, season):
        return np.full(HORIZON, history[-1])
    n = len(history)
    weights = np.ones(season) / season if season % 2 else np.concatenate(([0.5], np.ones(season - 1), [0.5])) / season
    trend = pd.Series(np.nan, index=range(n))
    side = len(weights) // 2
    trend.iloc[side : n - side] = np.convolve(history, weights, "valid")
    ratio = pd.Series(history) / trend
    figure = ratio.groupby(np.arange(n) % season).mean()  # leaves out the ends, which have no trend
    figure = (figure / figure.mean()).to_numpy()
    whole = np.tile(figure, n // season + 1)[:n]
    return history[-1] / whole[-1] * np.tile(whole[-season:], HORIZON)[:HORIZON]


def made() -> list[dict]:
    rng = np.random.default_rng(3)
    cases = []
    for season, length, wave in ((24, 300, 0.4), (24, 260, 0.0), (12, 75, 0.5), (12, 30, 0.5), (5, 63, 0.3), (4, 40, 0.02), (1, 20, 0.3), (24, 80, 0.5)):
        steps = np.arange(length + HORIZON)
        level = 50 + 0.2 * steps
        values = level * (1 + wave * np.sin(2 * np.pi * steps / max(season, 2))) * rng.uniform(0.9, 1.1, len(steps))
        history, future = values[:length], values[length:]
        forecast = future * rng.uniform(0.8, 1.2, HORIZON)
        spread = np.sort(rng.normal(0, 6, (HORIZON, len(LEVELS))), axis=1)
        cases.append({"season": season, "history": history, "future": future, "forecast": forecast, "quantiles": forecast[:, None] + spread})
    constant = np.full(60, 3.0)
    constant[5] = 4.0
    cases.append({"season": 12, "history": constant, "future": np.full(HORIZON, 3.0), "forecast": np.full(HORIZON, 2.5), "quantiles": np.full((HORIZON, len(LEVELS)), 2.5)})
    return cases


def over_all(cases: list[dict], names: str = "forecast") -> dict:
    columns = [f"q{i}" for i in range(len(LEVELS))]
    rows, sums = [], {"mase": 0.0}
    for at, case in enumerate(cases):
        frame = pd.DataFrame(case["quantiles"], columns=columns)
        frame.insert(0, "model", case[names])
        frame.insert(0, "y", case["future"])
        frame.insert(0, "ds", np.arange(len(case["history"]), len(case["history"]) + HORIZON))
        frame.insert(0, "unique_id", at)
        rows.append(frame)
        train = pd.DataFrame({"unique_id": at, "ds": np.arange(len(case["history"])), "y": case["history"]})
        sums["mase"] += losses.mase(frame, ["model"], seasonality=case["season"], train_df=train)["model"].iloc[0] / len(cases)
    frame = pd.concat(rows)
    mean = {name: float(getattr(losses, name)(frame, ["model"])["model"].mean()) for name in ("mae", "mse", "mape", "smape")}
    mean["pinball"] = float(losses.mqloss(frame, {"model": columns}, quantiles=np.array(LEVELS))["model"].mean())
    # The package divides its score by the size of the series.
    scaled = losses.scaled_crps(frame, {"model": columns}, quantiles=np.array(LEVELS))["model"]
    sizes = frame["y"].abs().groupby(frame["unique_id"]).sum()
    crps = float((scaled.to_numpy() * sizes.to_numpy() / HORIZON).mean())
    return {
        "mae": mean["mae"],
        "rmse": math.sqrt(mean["mse"]),
        "mape": mean["mape"] * 100,
        "smape": mean["smape"] * 200,
        "mase": float(sums["mase"]),
        "pinball": mean["pinball"],
        "crps": crps,
    }


def main() -> None:
    cases = made()
    for case in cases:
        case["seasonal"] = seasonal(case["history"], case["season"])
        case["naive2"] = naive2(case["history"], case["season"])
    errors, benchmark = over_all(cases), over_all(cases, "naive2")
    errors["owa"] = (errors["smape"] / benchmark["smape"] + errors["mase"] / benchmark["mase"]) / 2
    series = [{key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in case.items()} for case in cases]
    content = {"script": SCRIPT, "versions": versions("numpy", "pandas", "utilsforecast"), "levels": LEVELS, "series": series, "errors": errors}
    path = goldens("timeseries") / "metrics.json"
    path.write_text(json.dumps(content, sort_keys=True) + "\n")
    print(path, errors, [case["seasonal"] for case in cases])


if __name__ == "__main__":
    main()
