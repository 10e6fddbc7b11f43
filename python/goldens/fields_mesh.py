"""Goldens of meshes: signed distances, winding numbers, counts, files, and marching cubes.

References: trimesh 4.12.2 (areas, volumes, closest points, files), pysdf 0.1.9 (signed distances, single precision), scikit-image
(marching cubes), and solid angles in plain numpy. Writes into crates/fields/tests/goldens/ mesh_<case>.safetensors, mesh_files.safetensors and marching_<case>.safetensors.
"""

import io

import numpy as np
import torch
import trimesh
from common import goldens, save, setup
from pysdf import SDF
from skimage.measure import marching_cubes, mesh_surface_area

SCRIPT = "python/goldens/fields_mesh.py"


def points_around(mesh: trimesh.Trimesh, seed: int) -> np.ndarray:
    """In a cube, close to the surface, and on normals through corners, where the nearest part is a corner or an edge."""
    rng = np.random.default_rng(seed)
    cube = rng.uniform(-1, 1, (150, 3))
    picked = rng.integers(0, len(mesh.faces), 100)
    weights = rng.dirichlet(np.ones(3), 100)
    near = np.einsum("nk,nkd->nd", weights, mesh.triangles[picked]) + rng.normal(0, 0.01, (100, 3))
    corners = mesh.vertices[rng.integers(0, len(mesh.vertices), 50)] * rng.uniform(0.9, 1.1, (50, 1))
    return np.concatenate([cube, near, corners])


def winding(mesh: trimesh.Trimesh, points: np.ndarray) -> np.ndarray:
    """Sum of solid angles over 4 pi, by the arctangents of Eriksson's product of three edges of spherical triangles (Girard)."""
    out = np.zeros(len(points))
    for i, point in enumerate(points):
        a, b, c = (unit(mesh.triangles[:, k] - point) for k in range(3))
        signed = np.sign(np.einsum("nd,nd->n", a, np.cross(b, c)))

        def corner(x, y, z):
            """Angle at x of the spherical triangle x, y, z."""
            u, v = np.cross(x, y), np.cross(x, z)
            return np.arctan2(np.linalg.norm(np.cross(u, v), axis=1), np.einsum("nd,nd->n", u, v))

        excess = corner(a, b, c) + corner(b, c, a) + corner(c, a, b) - np.pi
        out[i] = (signed * excess).sum() / (4 * np.pi)
    return out


def unit(xs: np.ndarray) -> np.ndarray:
    return xs / np.linalg.norm(xs, axis=1, keepdims=True)


def meshes() -> dict[str, trimesh.Trimesh]:
    turn = trimesh.transformations.rotation_matrix(0.7, [0.3, 1.0, 0.5], [0, 0, 0])
    torus = trimesh.creation.torus(0.6, 0.25, major_sections=17, minor_sections=11)
    torus.apply_transform(turn)
    box = trimesh.creation.box((0.9, 0.5, 1.3))
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.8)
    cavity = trimesh.creation.icosphere(subdivisions=1, radius=0.35)
    cavity.invert()
    cavity.apply_translation([0.2, 0.1, -0.1])
    hollow = trimesh.util.concatenate([ball, cavity])
    bowl = trimesh.Trimesh(ball.vertices, ball.faces[ball.triangles_center[:, 2] < 0.45], process=False)
    return {"torus": torus, "box": box, "hollow": hollow, "bowl": bowl}


def distances() -> None:
    for seed, (case, mesh) in enumerate(meshes().items()):
        points = points_around(mesh, seed)
        _, distance, _ = trimesh.proximity.closest_point_naive(mesh, points)
        tensors = {
            "vertices": torch.from_numpy(np.array(mesh.vertices, dtype=np.float64)),
            "faces": torch.from_numpy(np.array(mesh.faces, dtype=np.int64)),
            "points": torch.from_numpy(points),
            "distance": torch.from_numpy(np.array(distance)),
            "winding": torch.from_numpy(winding(mesh, points)),
            "numbers": torch.tensor([mesh.area, mesh.volume, float(mesh.euler_number), float(mesh.is_watertight)], dtype=torch.float64),
        }
        if case != "bowl":
            # Positive inside. Not exact: it looks at the triangles around the nearest vertex only.
            tensors["pysdf"] = torch.from_numpy(-SDF(mesh.vertices, mesh.faces)(points.astype(np.float32)))
        save(goldens("fields") / f"mesh_{case}.safetensors", SCRIPT, tensors, {}, ("numpy", "trimesh", "pysdf"))


def files() -> None:
    mesh = meshes()["torus"]
    mesh.vertices = np.array(mesh.vertices, dtype=np.float32)  # what all formats below hold
    ascii_ply = trimesh.exchange.ply.export_ply(mesh, encoding="ascii")
    little = trimesh.exchange.ply.export_ply(mesh, encoding="binary")
    text = trimesh.exchange.obj.export_obj(mesh, digits=9)
    header, body = little.split(b"end_header\n")
    # The same with the highest byte first, by the types of trimesh's header.
    at = len(mesh.vertices) * 12
    vertices = np.frombuffer(body[:at], "<f4").astype(">f4").tobytes()
    faces = np.frombuffer(body[at:], np.dtype([("n", "u1"), ("i", "<i4", 3)]))
    faces = faces.astype(np.dtype([("n", "u1"), ("i", ">i4", 3)])).tobytes()
    big = header.replace(b"little", b"big") + b"end_header\n" + vertices + faces
    back = trimesh.load(io.BytesIO(big), file_type="ply", process=False)
    assert np.array_equal(back.vertices, mesh.vertices) and np.array_equal(back.faces, mesh.faces)
    tensors = {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in
               [("ascii.ply", ascii_ply), ("little.ply", little), ("big.ply", big), ("text.obj", text.encode())]}
    tensors["vertices"] = torch.from_numpy(np.array(mesh.vertices, dtype=np.float64))
    tensors["faces"] = torch.from_numpy(np.array(mesh.faces, dtype=np.int64))
    save(goldens("fields") / "mesh_files.safetensors", SCRIPT, tensors, {}, ("numpy", "trimesh"))


def marching() -> None:
    lower, upper = np.array([-1.0, -0.9, -0.8]), np.array([1.1, 0.95, 0.7])
    sizes = (23, 20, 17)
    axes = [np.linspace(low, high, n) for low, high, n in zip(lower, upper, sizes)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    fields = {
        "sphere": np.sqrt((x - 0.03) ** 2 + y**2 + z**2) - 0.6,
        "torus": np.sqrt((np.sqrt(x**2 + y**2) - 0.55) ** 2 + (z + 0.02) ** 2) - 0.22,
        "noise": np.random.default_rng(5).normal(size=(11, 9, 12)),
    }
    for case, values in fields.items():
        values = np.ascontiguousarray(values.astype(np.float32))
        spacing = (upper - lower) / (np.array(values.shape) - 1)
        vertices, faces, _, _ = marching_cubes(values, 0.0, spacing=tuple(spacing), method="lorensen")
        vertices = vertices + lower
        surface = trimesh.Trimesh(vertices, faces, process=False)
        order = np.lexsort(vertices.T[::-1])
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        tensors = {
            "values": torch.from_numpy(values),
            "faces": torch.from_numpy(rank[faces]),
            "bounds": torch.from_numpy(np.stack([lower, upper])),
            "vertices": torch.from_numpy(vertices[order].astype(np.float64)),
            "numbers": torch.tensor([len(faces), mesh_surface_area(vertices, faces), abs(surface.volume)], dtype=torch.float64),
        }
        save(goldens("fields") / f"marching_{case}.safetensors", SCRIPT, tensors, {}, ("numpy", "scikit-image", "trimesh"))


def main() -> None:
    setup()
    distances()
    files()
    marching()


if __name__ == "__main__":
    main()
