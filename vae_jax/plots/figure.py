"""Figures, their style, and their files."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import matplotlib as mpl
from matplotlib import style as styles
from matplotlib.figure import Figure as AnyFigure

from vae_jax import storage
from vae_jax.errors import VaeJaxError, legible

T = TypeVar("T")
Setting = Literal["axes.prop_cycle", "figure.figsize", "grid.color", "savefig.dpi"]
DPI = 150
MAX_DPI = 2400
# subsampling 0 keeps the colour of every pixel: in small pictures JPEG's usual half is visible.
JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
OPTIONS = {".png": {}, ".jpg": JPEG_OPTIONS, ".jpeg": JPEG_OPTIONS, ".webp": {"lossless": True}}
# For figures alone; without dates, so that the same figure is the same file.
VECTOR = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


class Figure(AnyFigure):
    """A figure that shows itself as the value of a notebook's cell."""

    def _repr_png_(self) -> bytes:
        return png(self)


def save(
    figure: AnyFigure,
    path: str | Path,
    file_quality: int | None = None,
    dpi: float | None = None,
) -> Path:
    """Write a figure in the format of the suffix, in .pdf or .svg with its text as text.

    Args:
        figure: the figure.
        path: its file; one without a suffix gets that of Matplotlib's `savefig.format`, .png.
        file_quality: as in `save_images`.
        dpi: dots per inch (None: 150, or those of a style sheet).

    Returns:
        The path of the file.

    Raises:
        VaeJaxError: as in `save_images`.
    """
    path = Path(path)
    if not path.suffix.strip(".0123456789"):  # none, or the end of a number
        path = path.with_name(f"{path.name}.{mpl.rcParams['savefig.format']}")
    options = options_for(path, file_quality, of_figure=True)
    dots = house("savefig.dpi", DPI) if dpi is None else dpi
    if not (isinstance(dots, str) or 1 <= dots <= MAX_DPI):
        raise VaeJaxError(f"The dots per inch of {path} are {dots:g}: give 1 to {MAX_DPI}.")

    def write(to: Path) -> None:
        if path.suffix.lower() in VECTOR:
            figure.savefig(to, dpi=dots, metadata=options)
        else:
            figure.savefig(to, dpi=dots, pil_kwargs=options)

    # Text stays text, which a paper's editor can find and set in its own font.
    as_text = mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "vae"})
    with of_any_script(), as_text:
        return write_whole(path, write)


def png(figure: AnyFigure) -> bytes:
    """The bytes of the .png file that `save` would write of a figure."""
    made = io.BytesIO()
    with of_any_script():
        figure.savefig(made, format="png", dpi=DPI)
    return made.getvalue()


def use_style(
    style_sheet: str | Path | None, dpi: float | None = None, suffix: str = "png"
) -> None:
    """Give figures a style sheet, dots per inch and a default suffix from now on.

    Args:
        style_sheet: an .mplstyle file, or the name of one of Matplotlib's.
        dpi: dots per inch.
        suffix: png, jpg, webp, pdf or svg.

    Raises:
        VaeJaxError: there is no such style sheet.
    """
    try:
        styles.use([] if style_sheet is None else str(style_sheet))
    except OSError as error:
        raise VaeJaxError(
            f"{style_sheet} is no style sheet: give an .mplstyle file, or the name of one of "
            "Matplotlib's, such as ggplot."
        ) from error
    if dpi is not None:
        mpl.rcParams["savefig.dpi"] = dpi
    if suffix != "png":
        mpl.rcParams["savefig.format"] = suffix


def options_for(path: Path, file_quality: int | None, of_figure: bool = False) -> dict[str, Any]:
    """The options with which PIL writes a picture to a path, or Matplotlib a figure.

    Args:
        path: the file.
        file_quality: as in `save_images`.
        of_figure: whether it is a figure, for which .pdf and .svg are allowed.

    Returns:
        The options by name.

    Raises:
        VaeJaxError: the suffix is unknown, or the quality does not suit it.
    """
    suffix, known = path.suffix.lower(), OPTIONS | VECTOR if of_figure else OPTIONS
    if suffix not in known:
        raise VaeJaxError(f"Cannot write {path}: its name must end in {', '.join(known)}.")
    if file_quality is None:
        return known[suffix]
    if suffix in {".png", *VECTOR}:
        raise VaeJaxError(
            f"Cannot write {path} with a quality: {suffix[1:].upper()} keeps every byte; choose "
            ".jpg or .webp, or leave the quality out."
        )
    if not 1 <= file_quality <= 100:
        raise VaeJaxError(f"The quality of {path} is {file_quality}: give 1 to 100.")
    if suffix == ".webp":
        return {"quality": file_quality}
    return JPEG_OPTIONS | {"quality": file_quality}


def plain(name: str) -> str:
    """The `name`, escaped so that figures show it as it is, even in legends."""
    return legible(f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def house(setting: Setting, own: T) -> T:
    """The value `own` of a `setting`, unless a style sheet changes Matplotlib's default."""
    said = mpl.rcParams[setting]
    return own if said == mpl.rcParamsDefault[setting] else said


@contextlib.contextmanager
def of_any_script() -> Iterator[None]:
    """Draw a box for each letter that no font has, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph|Matplotlib currently does not support")
        yield


def write_whole(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` make the file at `path`, whole or not at all; returns the path."""
    with storage.writing(path), storage.whole_file(path) as partial:
        write(partial)
    return path


def check_shape(what: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Check a shape.

    Args:
        what: the name of the array, for messages.
        shape: its shape.
        expected: the expected shape.

    Raises:
        VaeJaxError: the shape differs from the expected one.
    """
    if shape != expected:
        raise VaeJaxError(f"The {what} have shape {shape} where {expected} is needed.")
