"""Goldens of picture transforms and degradations, from Pillow, torchvision and timm.

Writes into crates/vision/tests/goldens/ files transforms_<part>.safetensors. Pictures are u8 [height, width, channels]:

  input.<name>   a picture made by a formula
  output.<i>     what the i-th case of metadata `config` (op, input, args) makes of input.<input>

Parts: color and geometry (u8, cases as above), actions (no tensors but a scale: `config` lists timm's arguments of each operation of RandAugment
for magnitudes and signs), batch (Mixup and CutMix given lam and box), eval (timm's transform for evaluation) and degrade (torchvision's blur).
Draws are not compared: the generators differ.
"""

import random
from unittest import mock

import numpy as np
import torch
import torchvision.transforms as tv
import torchvision.transforms.functional as tf
from common import goldens, randn, save, setup
from PIL import Image
from timm.data import auto_augment as aa
from timm.data import create_transform
from timm.data import mixup as timm_mixup

SCRIPT = "python/goldens/vision_transforms.py"
PACKAGES = ("timm", "torchvision", "pillow", "numpy")
FILL = (124, 116, 104)
RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def wave(height: int, width: int) -> np.ndarray:
    """Smooth in places, harsh in others, with black and white."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    value = 128 + 150 * np.sin(0.31 * x + 0.17 * y * (c + 1)) * np.cos(0.002 * x * y + c) + 9 * ((3 * x + 5 * y + 7 * c) % 5)
    return np.clip(value, 0, 255).astype(np.uint8)


def dull(height: int, width: int) -> np.ndarray:
    """Few values, far from black and white, each channel in its own range."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return (60 + 30 * c + (x * x + 3 * y * (c + 2)) % (31 + 13 * c)).astype(np.uint8)


INPUTS = {
    "wave": wave(29, 37),
    "dull": dull(24, 24),
    "grey": wave(29, 37)[..., :1].copy(),
    "flat": np.full((5, 4, 3), 77, np.uint8),
    "line": wave(1, 9),
    "thin": wave(2, 2),
}


def picture(name: str) -> Image.Image:
    pixels = INPUTS[name]
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def array(image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(image)
    return torch.from_numpy(np.array(pixels if pixels.ndim == 3 else pixels[..., None]))


COLOR = {
    "auto_contrast": aa.auto_contrast, "equalize": aa.equalize, "invert": aa.invert, "posterize": aa.posterize, "solarize": aa.solarize,
    "solarize_add": aa.solarize_add, "saturation": aa.color, "contrast": aa.contrast, "brightness": aa.brightness,
    "sharpness": aa.sharpness, "hue": tf.adjust_hue,
}


def geometry(op: str, image: Image.Image, args: dict) -> Image.Image:
    if op in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
        name = op + "_rel" if op.startswith("translate") else op
        fill = FILL if image.mode == "RGB" else FILL[0]
        return getattr(aa, name)(image, args["by"], resample=RESAMPLE[args["sampling"]], fillcolor=fill)
    if op == "affine":
        return image.transform(image.size, Image.AFFINE, args["matrix"], resample=RESAMPLE[args["sampling"]], fillcolor=FILL)
    if op == "resize_shorter":
        return tf.resize(image, args["side"], tf.InterpolationMode(args["sampling"]))
    if op == "center_crop":
        return tf.center_crop(image, args["size"])
    if op == "pad":
        modes = {"zero": "constant", "edge": "edge", "reflect": "reflect", "symmetric": "symmetric"}
        return tf.pad(image, args["margins"], padding_mode=modes[args["mode"]])
    if op == "resized_crop":
        window = args["window"]
        return tf.resized_crop(image, *window, [args["size"]] * 2, tf.InterpolationMode(args["sampling"]))
    if op == "hflip":
        return tf.hflip(image)
    if op == "vflip":
        return tf.vflip(image)
    return image.transpose([Image.ROTATE_90, Image.ROTATE_180, Image.ROTATE_270][args["turns"] - 1])


def cases_of(cases: list[tuple[str, str, dict]], apply) -> tuple[dict, list]:
    tensors = {f"input.{name}": torch.from_numpy(INPUTS[name]) for name in sorted({case[1] for case in cases})}
    for i, (op, name, args) in enumerate(cases):
        tensors[f"output.{i}"] = array(apply(op, picture(name), args))
    return tensors, [{"op": op, "input": name, "args": args} for op, name, args in cases]


def color_part() -> None:
    cases = []
    for name in ["wave", "dull", "grey", "flat", "line", "thin"]:
        cases += [(op, name, {}) for op in ["auto_contrast", "equalize"]]
    for name in ["wave", "grey"]:
        cases += [("invert", name, {})]
        cases += [("posterize", name, {"by": bits}) for bits in [1, 4, 8]]
        cases += [("solarize", name, {"by": threshold}) for threshold in [0, 26, 256]]
        cases += [("solarize_add", name, {"by": add}) for add in [0, 99]]
        cases += [("sharpness", name, {"by": factor}) for factor in [0.1, 1.81]]
        cases += [(op, name, {"by": factor}) for op in ["saturation", "contrast", "brightness"] for factor in [0.19, 1.0, 1.83]]
    cases += [("sharpness", name, {"by": 1.7}) for name in ["dull", "line", "thin"]]
    cases += [("hue", name, {"by": turn}) for name in ["wave", "dull", "grey"] for turn in [-0.5, -0.13, 0.0, 0.31]]

    def apply(op, image, args):
        return COLOR[op](image, *args.values())

    tensors, config = cases_of(cases, apply)
    save(goldens("vision") / "transforms_color.safetensors", SCRIPT, tensors, config, PACKAGES)


def geometry_part() -> None:
    cases = []
    for sampling in RESAMPLE:
        args = {"sampling": sampling}
        cases += [("rotate", "wave", {"by": by, **args}) for by in [27.0, -3.3, 90.0, 180.0]]
        cases += [("rotate", "dull", {"by": by, **args}) for by in [-90.0, -14.9]]
        cases += [("rotate", "grey", {"by": 13.7, **args}), ("rotate", "line", {"by": 5.0, **args})]
        for op, by in [("shear_x", 0.27), ("shear_y", -0.19), ("translate_x", 0.405), ("translate_y", -0.31)]:
            cases += [(op, "wave", {"by": by, **args}), (op, "thin", {"by": by, **args})]
        cases += [("affine", "dull", {"matrix": [0.7, 0.31, -1.4, -0.2, 1.3, 2.9], **args})]
        cases += [("resize_shorter", "wave", {"side": side, **args}) for side in [17, 29]]
        cases += [("resized_crop", "wave", {"window": [3, 5, 19, 26], "size": 16, **args})]
    cases += [("center_crop", "wave", {"size": size}) for size in [[16, 17], [17, 24], [35, 20], [30, 42]]]
    cases += [("center_crop", "grey", {"size": [40, 12]})]
    for mode in ["zero", "edge", "reflect", "symmetric"]:
        cases += [("pad", "dull", {"mode": mode, "margins": [4, 1, 2, 3]}), ("pad", "thin", {"mode": mode, "margins": [5, 3, 4, 7]})]
    cases += [("pad", "line", {"mode": mode, "margins": [2, 3, 2, 1]}) for mode in ["reflect", "symmetric"]]
    cases += [("rot90", "line", {"turns": turns}) for turns in [1, 2, 3]]
    cases += [("hflip", "line", {}), ("vflip", "thin", {}), ("rot90", "thin", {"turns": 1})]
    tensors, config = cases_of(cases, geometry)
    save(goldens("vision") / "transforms_geometry.safetensors", SCRIPT, tensors, config, PACKAGES)


def actions_part() -> None:
    """timm's arguments of each operation, with the sign forced."""
    lists = {True: aa._RAND_INCREASING_TRANSFORMS, False: aa._RAND_TRANSFORMS}
    config = []
    for increasing, names in lists.items():
        for i, name in enumerate(names):
            for magnitude in [0.0, 0.4, 3.3, 5.0, 8.72, 9.0, 9.9, 10.0]:
                for negate in [False, True]:
                    level = aa.LEVEL_TO_ARG[name]
                    with mock.patch.object(random, "random", return_value=float(negate)):
                        args = level(magnitude, {}) if level else ()
                    config.append([i, increasing, magnitude, negate, *args])
    save(goldens("vision") / "transforms_actions.safetensors", SCRIPT, {"scale": torch.ones(1)}, config, PACKAGES)


def batch_part() -> None:
    xs = randn(5, 3, 9, 12, seed=1)
    labels = torch.tensor([3, 0, 6, 6, 1])
    tensors, config = {"xs": xs, "labels": labels}, []
    for lam, cutmix, row, column in [(0.37, False, 0, 0), (1.0, False, 0, 0), (0.37, True, 4, 6), (0.9, True, 0, 11), (0.05, True, 8, 0), (0.999, True, 3, 3)]:
        mixer = timm_mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=7)
        places = iter([row, column])
        with (
            mock.patch.object(mixer, "_params_per_batch", return_value=(lam, cutmix)),
            mock.patch.object(np.random, "randint", side_effect=lambda *_, **__: next(places)),
        ):
            # The parts of `__call__`, which refuses odd batches.
            ys = xs.clone()
            mixed = mixer._mix_batch(ys)
            targets = timm_mixup.mixup_target(labels, 7, mixed, 0.1)
        i = len(config)
        tensors |= {f"xs.{i}": ys, f"targets.{i}": targets}
        config.append({"lam": lam, "cutmix": cutmix, "row": row, "column": column, "mixed": float(mixed)})
    save(goldens("vision") / "transforms_batch.safetensors", SCRIPT, tensors, config, PACKAGES)


def eval_part() -> None:
    tensors = {"input": torch.from_numpy(wave(47, 61)), "upright": torch.from_numpy(wave(50, 31)), "ramp": torch.arange(256, dtype=torch.uint8).view(16, 16, 1)}
    config = []
    for name, size, pct, interpolation in [("input", 24, 0.875, "bicubic"), ("upright", 24, 0.9, "bilinear"), ("input", 31, 1.0, "bicubic")]:
        transform = create_transform(size, is_training=False, crop_pct=pct, interpolation=interpolation)
        tensors[f"output.{len(config)}"] = transform(Image.fromarray(tensors[name].numpy()))
        config.append({"input": name, "size": size, "crop_pct": pct, "interpolation": interpolation})
    ramp = tf.to_tensor(Image.fromarray(tensors["ramp"][..., 0].numpy()))
    tensors["ramp_normal"] = tf.normalize(ramp, [0.485], [0.229])
    save(goldens("vision") / "transforms_eval.safetensors", SCRIPT, tensors, config, PACKAGES)


def degrade_part() -> None:
    tensors = {"input": tf.to_tensor(picture("wave"))}
    sigmas = [0.3, 1.0, 2.7]
    for i, sigma in enumerate(sigmas):
        size = 2 * int(np.ceil(3 * sigma)) + 1
        tensors[f"blur.{i}"] = tf.gaussian_blur(tensors["input"], [size, size], [sigma, sigma])
    save(goldens("vision") / "transforms_degrade.safetensors", SCRIPT, tensors, sigmas, PACKAGES)


def ranges() -> None:
    """What this file relies on in torchvision, said out loud."""
    jitter = tv.ColorJitter(0.4, 1.4, 0.0, 0.1)
    assert jitter.brightness == (0.6, 1.4) and jitter.contrast == (0.0, 2.4) and jitter.saturation is None and jitter.hue == (-0.1, 0.1)


def main() -> None:
    setup()
    ranges()
    color_part()
    geometry_part()
    actions_part()
    batch_part()
    eval_part()
    degrade_part()


if __name__ == "__main__":
    main()
