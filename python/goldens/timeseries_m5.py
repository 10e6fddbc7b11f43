"""A small M5: its three files, and the WRMSSE of a forecast by pandas.

Written from the competitors' guide, apart from the Rust code: every level is a group-by, every series a row. Writes into
crates/timeseries/tests/goldens/m5/ the files of the competition, cut down to 30 series of 100 days (some begin late, one is never sold, one
is not sold in the last 28 training days), and m5.json: train_days, forecast [series, 28], dollars, weights and error of each level, wrmsse.
"""

import json

import numpy as np
import pandas as pd
from common import goldens, versions

SCRIPT = "python/goldens/timeseries_m5.py"
DAYS, TRAIN, HORIZON, WEIGHT_DAYS = 100, 72, 28, 28
LEVELS = [
    [],
    ["state_id"],
    ["store_id"],
    ["cat_id"],
    ["dept_id"],
    ["state_id", "cat_id"],
    ["state_id", "dept_id"],
    ["store_id", "cat_id"],
    ["store_id", "dept_id"],
    ["item_id"],
    ["item_id", "state_id"],
    ["item_id", "store_id"],
]


def made() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(5)
    days = [f"d_{n}" for n in range(1, DAYS + 1)]
    dates = pd.date_range("2011-01-29", periods=DAYS + 10)
    calendar = pd.DataFrame({"date": dates.strftime("%Y-%m-%d"), "wm_yr_wk": 11101 + np.arange(DAYS + 10) // 7, "d": [f"d_{n}" for n in range(1, DAYS + 11)]})
    rows, prices = [], []
    for dept, items in (("FOODS_1", 2), ("FOODS_2", 1), ("HOBBIES_1", 3)):
        for number in range(1, items + 1):
            item = f"{dept}_{number:03}"
            for store in ("CA_1", "CA_2", "TX_1", "TX_2", "WI_1"):
                at = len(rows)
                start = int(rng.integers(0, 40)) if at % 3 == 0 else 0
                units = rng.poisson(rng.uniform(0.3, 4.0), DAYS)
                units[:start] = 0
                if at == 7:
                    units[:] = 0
                if at == 11:
                    units[TRAIN - WEIGHT_DAYS : TRAIN] = 0
                rows.append([f"{item}_{store}_evaluation", item, dept, dept.split("_")[0], store, store.split("_")[0], *units])
                price = rng.uniform(0.5, 9.0)
                for week in sorted(set(calendar["wm_yr_wk"][start:])):
                    price = price if rng.random() < 0.8 else rng.uniform(0.5, 9.0)
                    prices.append([store, item, week, round(float(price), 2)])
    sales = pd.DataFrame(rows, columns=["id", "item_id", "dept_id", "cat_id", "store_id", "state_id", *days])
    return sales, calendar, pd.DataFrame(prices, columns=["store_id", "item_id", "wm_yr_wk", "sell_price"])


def scored(sales: pd.DataFrame, calendar: pd.DataFrame, prices: pd.DataFrame, forecast: np.ndarray) -> dict:
    keys = ["item_id", "dept_id", "cat_id", "store_id", "state_id"]
    days = [f"d_{n}" for n in range(1, DAYS + 1)]
    train, test = days[:TRAIN], days[TRAIN : TRAIN + HORIZON]
    long = sales.melt(id_vars=["id", *keys], value_vars=train[-WEIGHT_DAYS:], var_name="d", value_name="units")
    long = long.merge(calendar, on="d").merge(prices, on=["store_id", "item_id", "wm_yr_wk"], how="left")
    dollars = (long["units"] * long["sell_price"]).groupby(long["id"]).sum().reindex(sales["id"]).to_numpy()
    errors, weights = [], []
    for level in LEVELS:
        groups = sales[level].agg(" ".join, axis=1) if level else pd.Series(["total"] * len(sales))
        sums = sales[days].groupby(groups.to_numpy()).sum()
        predicted = pd.DataFrame(forecast, columns=test).groupby(groups.to_numpy()).sum()
        weight = pd.Series(dollars).groupby(groups.to_numpy()).sum() / dollars.sum()
        error = 0.0
        for name in sums.index:
            if weight[name] == 0:
                continue
            history = np.trim_zeros(sums.loc[name, train].to_numpy(dtype=float), "f")
            scale = np.mean(np.diff(history) ** 2)
            error += weight[name] * np.sqrt(np.mean((sums.loc[name, test].to_numpy() - predicted.loc[name].to_numpy()) ** 2) / scale)
        errors.append(error)
        weights.append(weight.to_dict())
    return {"train_days": TRAIN, "dollars": dollars.tolist(), "weights": weights, "levels": errors, "wrmsse": float(np.mean(errors))}


def main() -> None:
    sales, calendar, prices = made()
    folder = goldens("timeseries") / "m5"
    folder.mkdir(exist_ok=True)
    sales.to_csv(folder / "sales_train_evaluation.csv", index=False)
    calendar.to_csv(folder / "calendar.csv", index=False)
    prices.to_csv(folder / "sell_prices.csv", index=False)
    forecast = np.random.default_rng(6).poisson(1.5, (len(sales), HORIZON)) + 0.25
    content = {"script": SCRIPT, "versions": versions("numpy", "pandas"), "forecast": forecast.tolist()} | scored(sales, calendar, prices, forecast)
    (folder / "m5.json").write_text(json.dumps(content, sort_keys=True) + "\n")
    print(f"{folder}: {len(sales)} series, WRMSSE {content['wrmsse']:.6f}")


if __name__ == "__main__":
    main()
