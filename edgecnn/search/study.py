"""An Optuna study that several processes and machines may share, opened so that what is wrong is one line."""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from edgecnn.errors import UsageError
from edgecnn.search.result import KIND

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler

DATABASE, REPORT, PICTURE, TRIALS = "study.db", "study.json", "pareto.png", "trials"
# Of the validation accuracy and of the int8 latency.
DIRECTIONS: tuple[Literal["maximize"], Literal["minimize"]] = ("maximize", "minimize")
_HEARTBEAT_SECONDS = 60  # a trial whose process was killed counts as failed after twice as long
_ABOUT = "edgecnn"
_WAIT_SECONDS = 60  # for another process's write to an SQLite file


def claim_folder(folder: Path) -> None:
    """Make the study's folder, or see that it is one.

    Raises:
        UsageError: it holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    others = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    if not others or DATABASE in others or _is_report(folder / REPORT):
        return
    raise UsageError(f"{folder}: holds something else than a study ({others[0]}); give another folder by -o")


def _is_report(file: Path) -> bool:
    try:
        found = msgspec.json.decode(file.read_bytes())
    except (OSError, msgspec.DecodeError):
        return False
    return isinstance(found, dict) and found.get("kind") == KIND


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that work in the same folder waiting."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_study(folder: Path, storage: str | None, name: str, seed: int) -> Study:
    """Open the study of this name, or begin it; without `storage` it lies in the folder's SQLite file.

    Raises:
        UsageError: the storage is of an unknown kind, its driver is missing, it cannot be reached or is not Optuna's.
    """
    import optuna
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what happens to trials is said in our own words
    url = storage or f"sqlite:///{(folder / DATABASE).resolve()}"
    shown = shown_storage(storage) if storage else str(folder / DATABASE)
    try:
        with locked(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # heartbeats are called experimental by some versions
            study = optuna.create_study(
                storage=_database(url), sampler=make_sampler(seed), study_name=name, directions=DIRECTIONS, load_if_exists=True
            )  # fmt: skip
    except NoSuchModuleError:
        raise UsageError(f"{shown}: no storage of that kind is known; give sqlite:///FILE, postgresql://... or mysql://...") from None  # fmt: skip
    except ArgumentError:
        raise UsageError(f"{shown}: not the address of a database; give for example postgresql://user@host/name") from None  # fmt: skip
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or "its driver"
        raise UsageError(f"{shown}: the database's driver is not installed here: pip install {missing}") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
        raise UsageError(f"{shown}: cannot be used as a storage ({reason})") from None
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{shown}: {' '.join(str(error).split())[:200]}") from None
    if tuple(direction.name.lower() for direction in study.directions) != DIRECTIONS:
        raise UsageError(f"{shown}: its study {name!r} is not one of edgecnn; give another --study-name")
    return study


def shown_storage(url: str) -> str:
    """Write a storage's address without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return f"--storage {url.rpartition('@')[2]}"


def _database(url: str) -> Any:
    from optuna.storages import RDBStorage

    waits = {"connect_args": {"timeout": _WAIT_SECONDS}} if url.startswith("sqlite") else {}
    return RDBStorage(url, engine_kwargs=waits, heartbeat_interval=_HEARTBEAT_SECONDS)


def agree(study: Study, about: dict[str, Any], shown: str) -> None:
    """Record what the trials of this study have in common, or see that it is still so.

    Raises:
        UsageError: earlier trials were of other data or of another kind, so that they cannot be compared.
    """
    known = study.user_attrs.get(_ABOUT)
    if known is None:
        if study.get_trials(deepcopy=False):
            raise UsageError(
                f"{shown}: its study {study.study_name!r} is not one of edgecnn; give another --study-name"
            )
        study.set_user_attr(_ABOUT, about)
        return
    differing = [name for name in about if known.get(name) != about[name]]
    if differing:
        name = differing[0]
        raise UsageError(
            f"{shown}: the trials in it had {name} {known.get(name)}, not {about[name]}, and cannot be compared; "
            "give the same, or another -o"
        )


def make_sampler(seed: int) -> BaseSampler:
    """Make the sampler: TPE for several objectives (Ozaki et al. 2022), seeded anew for each trial.

    What a trial tries depends on the seed, its number and the trials before. One generator for the whole process
    would begin anew when a study is continued, and give two processes that begin together the same trials.
    """
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler, TPESampler
    from optuna.trial import FrozenTrial, TrialState

    class Numbered(BaseSampler):
        def __init__(self) -> None:
            self.inner = TPESampler(seed=seed)

        def before_trial(self, study: Study, trial: FrozenTrial) -> None:
            words = np.random.SeedSequence((seed, trial.number)).generate_state(1)
            self.inner = TPESampler(seed=int(words[0]), constant_liar=True)
            self.inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return self.inner.infer_relative_search_space(study, trial)

        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            return self.inner.sample_relative(study, trial, search_space)

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            return self.inner.sample_independent(study, trial, param_name, param_distribution)

        def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
            self.inner.after_trial(study, trial, state, values)

    return Numbered()
