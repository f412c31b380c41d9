"""Draws photos of a digit on paper, in situations that a phone's camera meets. Knows nothing of the service.

A photo is computed from light: the sheet reflects it, lines and ink absorb it, the desk lies around the
sheet, a shadow dims a part, and the camera tilts, blurs and adds noise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Gray = NDArray[np.uint8]
Light = NDArray[np.float32]
"""Fractions of the light that reach the camera, 0..1, (height, width)."""

SIZES = ((480, 640), (640, 480), (600, 600), (800, 600), (320, 420))
"""Widths and heights of the photos, in pixels."""


@dataclass
class Scene:
    """A photo in the making.

    across, down: the position of each pixel on the sheet, in pixels, from the centre of the photo.
    side: the shorter side of the photo; all lengths are chosen in proportion to it.
    """

    rng: np.random.Generator
    width: int
    height: int
    tilt: float
    side: int = field(init=False)
    across: Light = field(init=False)
    down: Light = field(init=False)
    sheet: Light = field(init=False)
    ink: Light = field(init=False)
    light: Light = field(init=False)

    def __post_init__(self) -> None:
        self.side = min(self.width, self.height)
        y, x = np.mgrid[: self.height, : self.width].astype(np.float32)
        x, y = x - self.width / 2, y - self.height / 2
        cosine, sine = np.cos(np.radians(self.tilt)), np.sin(np.radians(self.tilt))
        self.across, self.down = x * cosine + y * sine, y * cosine - x * sine
        self.sheet = np.full(x.shape, self.rng.uniform(0.7, 0.95), np.float32)
        self.ink = np.zeros(x.shape, np.float32)
        slope = self.rng.uniform(-0.1, 0.1, 2) / self.side
        self.light = (1 + x * slope[0] + y * slope[1]).astype(np.float32)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))


def photo(digit: Gray, situation: str, seed: int) -> Image.Image:
    """Draw a photo of an MNIST digit, (28, 28) light on black; the same for the same arguments."""
    rng = np.random.default_rng([seed, *situation.encode()])
    width, height = SIZES[rng.integers(len(SIZES))]
    scene = Scene(rng, width, height, tilt=float(rng.uniform(-8, 8)))
    size = scene.side * scene.uniform(0.2, 0.6)
    turn = scene.tilt + scene.uniform(-5, 5)
    offset = rng.uniform(-0.12, 0.12, 2) * scene.side
    write(scene, digit, size, turn, (float(offset[0]), float(offset[1])))
    SITUATIONS[situation](scene)
    return developed(scene)


def write(scene: Scene, digit: Gray, size: float, turn: float, offset: tuple[float, float]) -> None:
    """Add pen strokes to the ink. size: of MNIST's box of 20 pixels; offset: from the photo's centre."""
    scale = 8
    large = Image.fromarray(digit).resize((28 * scale, 28 * scale), Image.Resampling.BICUBIC)
    soft = np.asarray(large.filter(ImageFilter.GaussianBlur(scale / 3)), np.float32) / 255
    crisp = 255 / (1 + np.exp(-30 * (soft - scene.uniform(0.35, 0.5))))
    strokes = Image.fromarray(crisp.astype(np.uint8))
    step = 20 * scale / size
    cosine, sine = step * np.cos(np.radians(turn)), step * np.sin(np.radians(turn))
    x, y = scene.width / 2 + offset[0], scene.height / 2 + offset[1]
    middle = 14 * scale
    matrix = (
        *(cosine, sine, middle - x * cosine - y * sine),
        *(-sine, cosine, middle + x * sine - y * cosine),
    )
    shrunk = strokes.filter(ImageFilter.BoxBlur(max(0.0, (step - 1) / 2)))
    placed = shrunk.transform(
        (scene.width, scene.height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )
    darkness = scene.uniform(0.6, 0.9)
    scene.ink = np.maximum(scene.ink, darkness * np.asarray(placed, np.float32) / 255)


def developed(scene: Scene) -> Image.Image:
    """Turn light into pixels: blur, noise and 8 bits."""
    light = 255 * np.clip(scene.sheet * (1 - scene.ink) * scene.light, 0, 1)
    blur = scene.uniform(0, 0.003) * scene.side
    blurred = Image.fromarray(light.astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
    noise = scene.uniform(0, 6) * scene.rng.standard_normal(light.shape, np.float32)
    return Image.fromarray(np.clip(np.asarray(blurred) + noise, 0, 255).astype(np.uint8))


def plain(scene: Scene) -> None:
    """A white sheet that fills the photo."""


def shadow_edge(scene: Scene) -> None:
    """A hard shadow across the sheet, at any angle, often across the digit."""
    angle = scene.uniform(0, 2 * np.pi)
    away = scene.across * np.cos(angle) + scene.down * np.sin(angle)
    edge = scene.uniform(-0.3, 0.3) * scene.side
    softness = scene.uniform(0.5, 3)
    shade = 1 / (1 + np.exp(-np.clip((away - edge) / softness, -30, 30)))
    scene.light *= 1 - scene.uniform(0.15, 0.55) * shade


def _line(scene: Scene, position: Light, spacing: float, darkness: float, thickness: float) -> None:
    """Print lines at each multiple of the spacing."""
    distance = np.abs((position + spacing / 2) % spacing - spacing / 2)
    scene.sheet *= 1 - darkness * np.clip(thickness / 2 + 0.5 - distance, 0, 1)


def ruled(scene: Scene) -> None:
    """Horizontal lines, from faint to as dark as a pencil."""
    thickness = max(1.0, scene.uniform(0.002, 0.006) * scene.side)
    position = scene.down + scene.uniform(0, 1) * scene.side
    _line(scene, position, scene.uniform(0.06, 0.2) * scene.side, scene.uniform(0.15, 0.7), thickness)


def graph(scene: Scene) -> None:
    """Squared paper."""
    spacing, darkness = scene.uniform(0.05, 0.15) * scene.side, scene.uniform(0.15, 0.6)
    thickness = max(1.0, scene.uniform(0.002, 0.005) * scene.side)
    for position in (scene.across, scene.down):
        shift = np.float32(scene.uniform(0, 1) * spacing)
        _line(scene, position + shift, spacing, darkness, thickness)


def margin(scene: Scene) -> None:
    """One vertical line, beside the digit or through it."""
    position = scene.across + scene.uniform(-0.45, 0.45) * scene.side
    thickness = max(1.0, scene.uniform(0.003, 0.01) * scene.side)
    _line(scene, position, 10.0 * scene.side, scene.uniform(0.3, 0.85), thickness)


def desk(scene: Scene) -> None:
    """A sheet that lies on a desk, turned with its digit; the desk is dark, wooden or slightly brighter."""
    inside = np.ones(scene.sheet.shape, bool)
    for position, length in ((scene.across, scene.width), (scene.down, scene.height)):
        low, high = -length / 2 + scene.rng.uniform(0.02, 0.12, 2) * scene.side * (1, 1)
        inside &= (position > low) & (position < length / 2 - (high + length / 2))
    level = scene.uniform(0.05, 0.5) if scene.rng.random() < 0.9 else 1.0
    grain = 1 + scene.uniform(0, 0.1) * np.sin(scene.down * 0.15 + np.sin(scene.across * 0.01) * 3)
    scene.ink[~inside] = 0
    scene.sheet = np.where(inside, scene.sheet, np.float32(level) * grain).astype(np.float32)


def bars(scene: Scene) -> None:
    """Black bars above and below or at both sides, or a dark strip at one side."""
    depth = max(1, round(scene.uniform(0.005, 0.13) * scene.side))
    level = np.float32(scene.rng.choice([0.0, 0.0, scene.uniform(0, 0.4)]))
    sides = [[0, 1], [2, 3], [0], [1], [2], [3]][scene.rng.integers(6)]
    for side in sides:
        view = (scene.sheet, scene.sheet[::-1], scene.sheet.T, scene.sheet.T[::-1])[side]
        view[:depth] = level
    # A bar is no paper: no ink is seen on it.
    scene.ink[scene.sheet == level] = 0


def company(scene: Scene) -> None:
    """A second sign: a figure or a letter of a similar size, or small writing, somewhere beside the digit."""
    rows, columns = (np.flatnonzero((scene.ink > 0.3).any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    height = bottom - top
    size = max(6, round(height * scene.uniform(0.15, 1.1)))
    text = "".join(scene.rng.choice(list("ABEHKMTXaehkmnx23468"), 1 if size > height / 2 else 5))
    letters = _letters(text, size)
    gap = round(height * scene.uniform(0.25, 0.6))
    x, y = [
        (right + gap, (top + bottom - letters.shape[0]) // 2),
        (left - gap - letters.shape[1], (top + bottom - letters.shape[0]) // 2),
        ((left + right - letters.shape[1]) // 2, bottom + gap),
        ((left + right - letters.shape[1]) // 2, top - gap - letters.shape[0]),
    ][scene.rng.integers(4)]
    y0, x0 = max(y, 0), max(x, 0)
    target = scene.ink[y0 : max(y0, y + letters.shape[0]), x0 : max(x0, x + letters.shape[1])]
    part = letters[y0 - y :, x0 - x :][: target.shape[0], : target.shape[1]]
    target[: part.shape[0], : part.shape[1]] = np.maximum(target[: part.shape[0], : part.shape[1]], part)


def _letters(text: str, size: int) -> Light:
    """Print text of a height of about `size` pixels, 0..0.85."""
    font = ImageFont.load_default(size * 1.4)
    box = font.getbbox(text)
    canvas = Image.new("L", (int(box[2] - box[0]) + 1, int(box[3] - box[1]) + 1))
    ImageDraw.Draw(canvas).text((-box[0], -box[1]), text, fill=255, font=font)
    return np.asarray(canvas, np.float32) * np.float32(0.85 / 255)


SITUATIONS: dict[str, Callable[[Scene], None]] = {
    "plain": plain,
    "shadow-edge": shadow_edge,
    "ruled": ruled,
    "graph": graph,
    "margin": margin,
    "desk": desk,
    "bars": bars,
    "company": company,
}
