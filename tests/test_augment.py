"""Augmentation: what is drawn, how each part changes an image, and how its parts are written on the command line."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage, stats

from edgecnn.errors import UsageError
from edgecnn.training import augment as module
from edgecnn.training.augment import LEVELS, Augment, Draws, augment, describe_augment, draw, parse_augment, partners
from edgecnn.training.chance import derived_seed, generator

NONE = LEVELS["none"]


def with_parts(**parts: float | bool) -> Augment:
    return msgspec.structs.replace(NONE, **parts)


def pictures(count: int = 4, side: int = 10, channels: int = 1, width: int | None = None) -> torch.Tensor:
    pixels = np.random.default_rng(6).integers(0, 256, (count, channels, side, width or side))
    return torch.from_numpy(pixels.astype(np.float32))


def same_for_all(
    count: int, moves: tuple[float, ...] = (0, 0, 0, 0), mirror: bool = False, lights: tuple[float, float] = (0, 0),
    hole: tuple[float, float] = (0.5, 0.5),
) -> Draws:  # fmt: skip
    """Draw the same for every image: moves are angle, zoom, right and down, as shares of the largest."""

    def rows(values: tuple[float, ...]) -> torch.Tensor:
        return torch.tensor([values] * count, dtype=torch.float32)

    return Draws(rows(moves), torch.full((count,), mirror), rows(lights), rows(hole), torch.ones(count))


@pytest.mark.parametrize("parts", [LEVELS["light"], with_parts(shift=0.1), with_parts(mirror=True)])
def test_without_a_move_the_images_stay(parts: Augment) -> None:
    """A move of nothing gives the images back."""
    images = pictures(channels=3)
    assert torch.allclose(augment(images, same_for_all(4), parts, 0), images, atol=1e-3)


@pytest.mark.parametrize("zoom", [0.1, 0.0])
@pytest.mark.parametrize(("right", "down"), [(1, 0), (-1, 0), (0, 1), (0, -1), (1, -1)])
def test_the_largest_shift_is_a_tenth_of_the_side(right: int, down: int, zoom: float) -> None:
    """On ten pixels the largest shift is one whole pixel, and what comes in repeats the edge."""
    images = pictures()
    moved = augment(images, same_for_all(4, (0, 0, right, down)), with_parts(shift=0.1, zoom=zoom), 0)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    assert np.allclose(moved.numpy(), padded[:, :, 1 + down : 11 + down, 1 + right : 11 + right], atol=1e-2)


def _by_scipy(image: npt.NDArray[np.float32], angle: float, zoom: float, mirror: bool) -> npt.NDArray[np.float32]:
    height, width = image.shape
    turn = math.radians(angle)
    matrix = zoom * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    if mirror:  # of the picture that comes out
        matrix = matrix @ np.diag([1, -1])
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    return ndimage.affine_transform(image, matrix, centre - matrix @ centre, order=1, mode="nearest")  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize(("mirror", "parts"), [(False, {"zoom": 0.1}), (True, {"zoom": 0.1}), (True, {})])
def test_turns_scales_and_mirrors_are_scipys(mirror: bool, parts: dict[str, float], width: int) -> None:
    """The largest turn and change of scale, mirrored or not, square or not, is scipy's affine transform of that matrix."""
    images = pictures(count=1, side=16, width=width)
    asked = with_parts(turn=10, mirror=True, **parts)
    moved = augment(images, same_for_all(1, (1, -1, 0, 0), mirror), asked, 0)[0, 0].numpy()
    expected = _by_scipy(images[0, 0].numpy(), 10, 1 - parts.get("zoom", 0), mirror)
    assert np.allclose(moved[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-2)


def test_a_mirror_alone_is_an_exact_flip() -> None:
    """Every pixel of a mirrored image is a pixel of the original; images not drawn for it stay as they are."""
    images = pictures(channels=3)
    draws = same_for_all(4)
    draws.mirror[1::2] = True
    moved = augment(images, draws, with_parts(mirror=True), 0)
    assert torch.equal(moved[0::2], images[0::2])
    assert torch.equal(moved[1::2], images[1::2].flip(3))
    assert torch.equal(augment(images, same_for_all(4, mirror=True), with_parts(shift=0.1), 0), images)


@pytest.mark.parametrize("mirror", [False, True])
def test_shifts_alone_move_by_whole_pixels(mirror: bool) -> None:
    """Without a turn or a zoom nothing is interpolated: each image is a window of the padded one, bit for bit."""
    images = pictures(count=300, side=9)
    draws = draw(300, with_parts(shift=0.3, mirror=mirror), generator(0))
    moved = augment(images, draws, with_parts(shift=0.3, mirror=mirror), 0).numpy()
    padded = np.pad(images.numpy()[:, 0], ((0, 0), (3, 3), (3, 3)), mode="edge")
    found = set()
    for image, source, flipped in zip(moved[:, 0], padded, draws.mirror & mirror, strict=True):
        shown = image[:, ::-1] if flipped else image
        windows = np.lib.stride_tricks.sliding_window_view(source, (9, 9))
        places = np.argwhere((windows == shown).all(axis=(2, 3)))
        assert len(places) == 1
        found.add(tuple(places[0]))
    assert {row for row, _ in found} == {column for _, column in found} == set(range(7))


def test_flat_images_stay_flat() -> None:
    """A picture of one grey keeps it everywhere: nothing black comes in from outside."""
    images = torch.full((20, 3, 9, 9), 200.0)
    assert torch.allclose(
        augment(images, draw(20, LEVELS["light"], generator(0)), LEVELS["light"], 0), images, atol=1e-3
    )


def test_each_image_moves_its_own_way_and_stays_in_range() -> None:
    """Equal images of a batch come out different, no brighter and no darker than they were."""
    images = pictures(count=1).repeat(8, 1, 1, 1)
    moved = augment(images, draw(8, LEVELS["light"], generator(0)), LEVELS["light"], 0)
    assert moved.shape == images.shape
    assert all(not torch.equal(moved[0], moved[index]) for index in range(1, 8))
    assert float(moved.min()) >= float(images.min()) - 1e-3
    assert float(moved.max()) <= float(images.max()) + 1e-3


def test_what_came_in_is_not_changed() -> None:
    """The strongest augmentation leaves the tensor that it was given as it was."""
    images = pictures(count=6)
    before = images.clone()
    augment(images, draw(6, LEVELS["strong"], generator(0)), LEVELS["strong"], 7)
    assert torch.equal(images, before)


@pytest.mark.parametrize("level", ["light", "strong"])
def test_chance_comes_from_the_generator_alone(level: str) -> None:
    """The same seed draws alike, another one differently, and torch's global state is not drawn from."""
    images, parts = pictures(), LEVELS[level]
    state = torch.get_rng_state()
    one, again, other = (augment(images, draw(4, parts, generator(seed)), parts, 0) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("where", [slice(0, 4), slice(4, 7)])
def test_a_part_of_a_batch_is_changed_as_in_the_whole(where: slice) -> None:
    """Processes that share a batch at an even number change their images, mixed pairs too, as one alone would."""
    images, parts = pictures(count=7), LEVELS["strong"]
    draws = draw(7, parts, generator(3))
    whole = augment(images, draws, parts, 5)
    assert torch.allclose(augment(images[where], draws.of(where), parts, 5), whole[where], atol=1e-4)


def test_leaving_a_part_out_draws_the_same_for_the_others() -> None:
    """With mixup or without, moves and holes are the same."""
    one, other = draw(9, NONE, generator(4)), draw(9, LEVELS["strong"], generator(4))
    assert torch.equal(one.moves, other.moves)
    assert torch.equal(one.holes, other.holes)
    assert torch.equal(one.mix, torch.ones(9))


def test_moves_stay_within_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many images the matrices turn by at most ten degrees, scale by a tenth and shift by a tenth of the side."""
    seen: list[torch.Tensor] = []
    real = torch.nn.functional.affine_grid

    def spy(theta: torch.Tensor, size: list[int], align_corners: bool) -> torch.Tensor:
        seen.append(theta)
        return real(theta, size, align_corners=align_corners)

    monkeypatch.setattr(module.functional, "affine_grid", spy)
    augment(pictures(count=2000, side=3), draw(2000, LEVELS["light"], generator(0)), LEVELS["light"], 0)
    theta = seen[0].double().numpy()
    zoom = np.sqrt(np.linalg.det(theta[:, :, :2]))
    turn = np.degrees(np.arctan2(theta[:, 1, 0], theta[:, 0, 0]))
    assert 0.9 <= zoom.min() < 0.91 < 1.09 < zoom.max() <= 1.1 + 1e-6
    assert -10 - 1e-4 <= turn.min() < -9.8 < 9.8 < turn.max() <= 10 + 1e-4
    assert 0.19 < np.abs(theta[:, :, 2]).max() <= 0.2 + 1e-6  # of a side that is two long


def test_draws_are_uniform_and_half_are_mirrored() -> None:
    """Moves, lights and holes pass a Kolmogorov-Smirnov test for uniformity, and half of all images are mirrored."""
    draws = draw(4000, NONE, generator(5))
    for values in (*draws.moves.T, *draws.lights.T):
        assert stats.kstest(values.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    for values in draws.holes.T:
        assert stats.kstest(values.numpy(), stats.uniform(0, 1).cdf).pvalue > 1e-3
    assert stats.binomtest(int(draws.mirror.sum()), 4000).pvalue > 1e-3


@pytest.mark.parametrize(("centre", "rows", "columns"), [((0.5, 0.5), (3, 7), (3, 7)), ((0.0, 0.99), (0, 2), (8, 10))])
def test_cutout_greys_a_square(centre: tuple[float, float], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """A square of the share of the side asked for gets the grey value, cut off at the edge, and nothing else changes."""
    images = pictures(channels=3) + 1000
    expected = images.numpy().copy()
    expected[:, :, rows[0] : rows[1], columns[0] : columns[1]] = 42
    cut = augment(images, same_for_all(4, hole=centre), with_parts(cutout=0.4), 42).numpy()
    assert np.array_equal(cut, expected)


def test_light_changes_contrast_and_brightness() -> None:
    """Contrast turns about the middle grey, brightness is added, and the result stays a pixel value."""
    images = pictures()
    changed = augment(images, same_for_all(4, lights=(-1, 0.5)), with_parts(light=0.2), 0).numpy()
    expected = np.clip((images.numpy() - 128) * 0.8 + 128 + 0.5 * 0.2 * 128, 0, 255)
    assert np.allclose(changed, expected, atol=1e-3)
    assert float(augment(images, same_for_all(4, lights=(1, 1)), with_parts(light=1), 0).max()) == 255


def test_mixup_mixes_neighbours() -> None:
    """Both of a pair are mixed by the same share of each; the last of an odd batch stays alone."""
    parts = with_parts(mixup=0.4)
    images, draws = pictures(count=5), draw(5, parts, generator(2))
    pixels, share = images.numpy().astype(np.float64), draws.mix.double().numpy()
    assert share[0] == share[1] != share[2] == share[3]
    assert share[4] == 1
    expected = [share[i] * pixels[i] + (1 - share[i]) * pixels[j] for i, j in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 4))]
    assert np.allclose(augment(images, draws, parts, 0).numpy(), expected, atol=1e-3)
    assert partners(5).tolist() == [1, 0, 3, 2, 4]
    assert partners(2).tolist() == [1, 0]
    assert partners(1).tolist() == [0]


def test_mixing_shares_are_of_the_beta_distribution() -> None:
    """Over many pairs the shares pass a Kolmogorov-Smirnov test against scipy's beta distribution."""
    mix = draw(4000, with_parts(mixup=0.3), generator(1)).mix[::2]
    assert stats.kstest(mix.numpy(), stats.beta(0.3, 0.3).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("text", "mirrored", "expected"),
    [
        ("none", True, NONE),
        ("none,mirror", False, with_parts(mirror=True)),
        ("light", False, Augment()),
        ("light", True, Augment(mirror=True)),
        ("light,no-mirror", True, Augment()),
        ("mirror", False, Augment(mirror=True)),
        ("turn=5,no-zoom", False, Augment(turn=5, zoom=0)),
        (" light , cutout ", False, Augment(cutout=0.3)),
        ("none,mixup=0.5,shift", True, with_parts(mixup=0.5, shift=0.12)),
        ("strong", False, LEVELS["strong"]),
        ("strong,light=0.1", False, msgspec.structs.replace(LEVELS["strong"], light=0.1)),
        ("", False, Augment()),
    ],
)
def test_parts_are_read(text: str, mirrored: bool, expected: Augment) -> None:
    """A level, parts with and without values, and parts left out are read; a word first is a level where it can be."""
    assert parse_augment(text, mirrored) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lihgt", "'lihgt' is neither none, light, strong nor one of shift, turn"),
        ("light,strong", "one level, and it comes first"),
        ("light,no-turn=3", "'no-turn=3' is neither"),
        ("turn=lots", "'turn=lots' needs a number"),
        ("turn=", "'turn=' needs a number"),
        ("mirror=1", "'mirror=1' needs no number"),
        ("shift=0.6", "shift lies from 0 to 0.5"),
        ("zoom=-0.1", "zoom lies from 0 to 0.9"),
        ("turn=nan", "turn lies from 0 to 180"),
        ("mixup=inf", "mixup lies from 0 to 10"),
    ],
)
def test_parts_that_cannot_be_are_said_in_one_line(text: str, told: str) -> None:
    """What is wrong with an augmentation is named, with the text it stands in."""
    with pytest.raises(UsageError) as caught:
        parse_augment(text, False)
    assert str(caught.value).startswith(f"--augment {text}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_augmentation_is_described() -> None:
    """The description names what is drawn and nothing else, and the words can be read back."""
    assert describe_augment(NONE) == "none"
    assert describe_augment(Augment(mirror=True, zoom=0)) == "shift 0.1, turn 10, mirror"
    for parts in LEVELS.values():
        words = describe_augment(parts).replace(" ", "=").replace(",=", ",")
        assert parse_augment(words if parts == NONE else f"none,{words}", False) == parts


def test_seeds_of_places_are_their_own() -> None:
    """Each seed and place has a number of 63 bits of its own, the same in every interpreter."""
    places = [(seed, word, step) for seed in range(3) for word in ("augment", "order") for step in range(50)]
    seeds = {derived_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, "order", 1) == 125578804223736978
    assert derived_seed(1, 12) != derived_seed(11, 2)
