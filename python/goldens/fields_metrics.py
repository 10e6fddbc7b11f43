"""Goldens of metrics, sounds, lenses and poses.

References: scikit-image (PSNR), scipy (nearest neighbours, rotations, WAV files) and COLMAP's own library, pycolmap 4.2.1 (lenses, sparse models).
Writes into crates/fields/tests/goldens/ metrics_fields.safetensors, signals_wav.safetensors, scene_lenses.safetensors and
scene_colmap.safetensors, and into crates/fields/tests/fixtures/ a sparse model twice: colmap_text/ and colmap_binary/.
"""

import io
import wave

import numpy as np
import pycolmap
import torch
from common import ROOT, goldens, save, setup
from scipy.io import wavfile
from scipy.spatial import cKDTree
from skimage.metrics import peak_signal_noise_ratio

SCRIPT = "python/goldens/fields_metrics.py"


def metrics() -> None:
    rng = np.random.default_rng(0)
    targets = rng.uniform(0, 1, (37, 29, 3))
    outputs = targets + rng.normal(0, 0.2, targets.shape)  # many outside of 0..1
    psnr = peak_signal_noise_ratio(targets, outputs.clip(0, 1), data_range=1)
    tensors = {"targets": targets, "outputs": outputs, "psnr": np.array(psnr)}
    one, other = rng.uniform(-1, 1, (2, 11, 13, 7))
    a, b = one <= 0.1, other <= 0.3
    tensors |= {"sdf.one": one, "sdf.other": other, "iou": np.array((a & b).sum() / (a | b).sum())}
    line = np.stack([np.linspace(-1, 1, 40), np.full(40, 0.25), np.zeros(40)], 1)
    sets = {"cloud": (rng.normal(size=(60, 3)), rng.normal(size=(45, 3))), "line": (line, rng.uniform(-1, 1, (30, 3))),
            "same": (np.repeat(rng.normal(size=(3, 3)), 9, 0), np.zeros((1, 3)))}
    for case, (xs, ys) in sets.items():
        forward, backward = cKDTree(ys).query(xs)[0], cKDTree(xs).query(ys)[0]
        numbers = [forward.mean(), backward.mean(), (forward**2).mean(), (backward**2).mean()]
        tensors |= {f"{case}.one": xs, f"{case}.other": ys, f"{case}.numbers": np.array(numbers)}
    save(goldens("fields") / "metrics_fields.safetensors", SCRIPT, torch_of(tensors), {}, ("numpy", "scipy", "scikit-image"))


def torch_of(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(xs)) for name, xs in arrays.items()}


def sounds() -> None:
    rng = np.random.default_rng(1)
    tensors = {}
    for bits, channels in [(8, 1), (16, 2), (24, 3), (32, 1)]:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        samples = rng.integers(low, high, (33, channels), endpoint=True)
        samples[0], samples[1] = low, high
        raw = (samples + (128 if bits == 8 else 0)).astype("<i8").view(np.uint8).reshape(-1, 8)[:, : bits // 8].tobytes()
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(channels)
            writer.setsampwidth(bits // 8)
            writer.setframerate(8000)
            writer.writeframes(raw)
        tensors[f"int{bits}.bytes"] = np.frombuffer(file.getvalue(), np.uint8).copy()
        tensors[f"int{bits}.values"] = (samples / 2 ** (bits - 1)).astype(np.float32)
    samples = rng.uniform(-1, 1, (33, 2)).astype(np.float32)
    file = io.BytesIO()
    wavfile.write(file, 44100, samples)
    tensors |= {"float32.bytes": np.frombuffer(file.getvalue(), np.uint8).copy(), "float32.values": samples}
    save(goldens("fields") / "signals_wav.safetensors", SCRIPT, torch_of(tensors), {}, ("numpy", "scipy"))


LENSES = {
    "SIMPLE_PINHOLE": [35.0, 20.0, 15.5],
    "PINHOLE": [35.0, 36.5, 19.0, 15.0],
    "SIMPLE_RADIAL": [35.0, 20.0, 15.0, -0.11],
    "RADIAL": [34.0, 20.5, 15.0, 0.08, -0.02],
    "OPENCV": [35.0, 36.0, 20.25, 14.5, -0.12, 0.03, 0.004, -0.006],
}


def lenses() -> None:
    """Directions (x, y) = (X/Z, Y/Z) of all pixels of pictures of 41 x 31."""
    column, row = np.meshgrid(np.arange(41) + 0.5, np.arange(31) + 0.5)
    pixels = np.stack([column, row], -1).reshape(-1, 2)
    tensors = {}
    for model, parameters in LENSES.items():
        camera = pycolmap.Camera(model=model, width=41, height=31, params=parameters)
        tensors |= {f"{model}.parameters": np.array(parameters), f"{model}.xy": np.asarray(camera.cam_from_img(pixels))[:, :2].copy()}
    save(goldens("fields") / "scene_lenses.safetensors", SCRIPT, torch_of(tensors), {}, ("numpy", "pycolmap"))


def sparse_model() -> None:
    """Five photographs by five lenses, and three points, written by COLMAP's library as text and as bytes."""
    model = pycolmap.Reconstruction()
    rng = np.random.default_rng(2)
    centres = {}
    for i, (name, parameters) in enumerate(LENSES.items(), 1):
        model.add_camera_with_trivial_rig(pycolmap.Camera(camera_id=i, model=name, width=41, height=31, params=parameters))
        quaternion = rng.normal(size=4)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(quaternion / np.linalg.norm(quaternion)), rng.normal(size=3))
        points = [pycolmap.Point2D(rng.uniform(0, 30, 2)) for _ in range(i - 1)]  # the first has none: an empty line
        image = pycolmap.Image(name=f"folder/photo {6 - i}.jpg", camera_id=i, image_id=i, points2D=pycolmap.Point2DList(points))
        model.add_image_with_trivial_frame(image, pose)
        centres[image.name] = pose.inverse().matrix()
    for _ in range(3):
        track = pycolmap.Track()
        model.add_point3D(rng.normal(size=3), track, np.array([1, 2, 3], dtype=np.uint8))
    folder = ROOT / "crates" / "fields" / "tests" / "fixtures"
    for kind, write in [("text", model.write_text), ("binary", model.write_binary)]:
        target = folder / f"colmap_{kind}"
        target.mkdir(parents=True, exist_ok=True)
        write(target)
        for path in target.iterdir():
            if path.stem in ("rigs", "frames"):
                path.unlink()
    poses = np.stack([centres[name] for name in sorted(centres)])  # camera to world, in COLMAP's axes
    points = np.stack([model.points3D[i].xyz for i in sorted(model.points3D)])
    save(goldens("fields") / "scene_colmap.safetensors", SCRIPT, torch_of({"poses": poses, "points": points}), {}, ("numpy", "pycolmap"))


def main() -> None:
    setup()
    metrics()
    sounds()
    lenses()
    sparse_model()


if __name__ == "__main__":
    main()
