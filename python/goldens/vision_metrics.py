"""Goldens of scores and losses of pictures.

References: scikit-image (PSNR, SSIM by Wang's windows), scikit-learn (accuracies, cross entropy, confusion), timm (label smoothing) and plain torch.
Writes into crates/vision/tests/goldens/ metrics_pictures.safetensors, metrics_classes.safetensors and metrics_losses.safetensors.
"""

import numpy as np
import torch
import torch.nn.functional as F
from common import goldens, save, setup
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score
from timm.loss import LabelSmoothingCrossEntropy

SCRIPT = "python/goldens/vision_metrics.py"


def ssim(xs: np.ndarray, ys: np.ndarray) -> float:
    """Of [channels, height, width]."""
    return structural_similarity(xs, ys, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=0)


def luma(xs: np.ndarray) -> np.ndarray:
    return (16 + 65.481 * xs[:1] + 128.553 * xs[1:2] + 24.966 * xs[2:]) / 255


def pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for case, channels in [("grey", 1), ("colour", 3)]:
        clean = (torch.rand(channels, 37, 29, generator=generator, dtype=torch.float64) * 255).round() / 255
        restored = clean + 0.15 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        xs, ys = restored.numpy(), clean.numpy()
        as_bytes = (np.clip(xs, 0, 1) * 255).round() / 255
        scores = [
            peak_signal_noise_ratio(ys, xs, data_range=1), ssim(ys, xs), peak_signal_noise_ratio(ys, as_bytes, data_range=1),
        ]
        if channels == 3:
            scores += [peak_signal_noise_ratio(luma(ys), luma(xs), data_range=1), ssim(luma(ys), luma(xs))]
        tensors |= {f"{case}.clean": clean, f"{case}.restored": restored, f"{case}.scores": torch.tensor(scores, dtype=torch.float64)}
    save(goldens("vision") / "metrics_pictures.safetensors", SCRIPT, tensors, {}, ("scikit-image",))


def classes() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 8, (200,), generator=generator)
    logits = torch.randn(200, 8, generator=generator, dtype=torch.float64) + 1.5 * F.one_hot(labels, 8)
    shares = logits.softmax(-1).numpy()
    scores = [top_k_accuracy_score(labels, shares, k=k, labels=range(8)) for k in (1, 5)] + [log_loss(labels, shares, labels=range(8))]
    confusion = torch.from_numpy(confusion_matrix(labels, shares.argmax(-1), labels=range(8)))
    tensors = {"logits": logits, "labels": labels, "scores": torch.tensor(scores, dtype=torch.float64), "confusion": confusion}
    save(goldens("vision") / "metrics_classes.safetensors", SCRIPT, tensors, {}, ("scikit-learn",))


def losses() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 8, (20,), generator=generator)
    logits = torch.randn(20, 8, generator=generator, dtype=torch.float64)
    clean = torch.rand(2, 3, 16, 24, generator=generator, dtype=torch.float64)
    restored = clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    half = torch.rand(2, 3, 8, 12, generator=generator, dtype=torch.float64).requires_grad_()

    def charbonnier(xs, ys):
        return torch.sqrt((xs - ys) ** 2 + 1e-6).mean()

    def frequency(xs, ys):
        return (torch.fft.fft2(xs) - torch.fft.fft2(ys)).abs().mean()

    small = F.interpolate(clean, size=(8, 12), mode="bilinear", align_corners=False)
    loss = sum(charbonnier(xs, ys) + 0.1 * frequency(xs, ys) for xs, ys in [(half, small), (restored, clean)])
    loss.backward()
    tensors = {
        "labels": labels, "logits": logits, "clean": clean, "restored": restored, "half": half.detach(), "grad_half": half.grad,
        "label_smoothing": LabelSmoothingCrossEntropy(0.1)(logits, labels), "charbonnier": charbonnier(restored, clean),
        "frequency": frequency(restored, clean), "sum": loss.detach(),
    }
    save(goldens("vision") / "metrics_losses.safetensors", SCRIPT, tensors, {}, ("timm",))


def main() -> None:
    setup()
    pictures()
    classes()
    losses()


if __name__ == "__main__":
    main()
