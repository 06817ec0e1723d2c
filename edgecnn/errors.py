"""Every exception edgecnn raises on purpose; each message says what, where and what to do, in one line."""


class EdgecnnError(Exception):
    """The base of all; the CLI prints the message and leaves with `exit_code`."""

    exit_code = 2


class UsageError(EdgecnnError):
    """An argument that cannot be acted on."""


class ImageError(EdgecnnError):
    """A file that is not an image edgecnn reads, or a damaged one."""


class DataError(EdgecnnError):
    """A set of labelled images that cannot be used as it is."""


class CheckpointError(EdgecnnError):
    """A checkpoint that is missing, damaged or of another kind."""


class TrainingError(EdgecnnError):
    """Training that cannot go on, for example after a loss that is not a number."""


class LostProcessError(TrainingError):
    """Another of the processes that train together has ended; whoever is left says so."""


class BundleError(EdgecnnError):
    """A bundle that cannot be read or written."""


class SchemaError(BundleError):
    """A manifest of an unknown version, or with a field missing or of the wrong type."""


class DamagedError(BundleError):
    """A file whose size or hash is not what the manifest says."""


class EscapeError(BundleError):
    """A path in a manifest, or in a model, that leaves the bundle."""


class SignatureError(DamagedError):
    """A bundle that is not, to the byte, what the holder of the key signed that was asked for."""

    exit_code = 3


class ExportError(EdgecnnError):
    """An export that did not produce what was asked for."""


class QuantizationError(EdgecnnError):
    """A model that cannot be quantized, or not as asked: no CNN, quantized already, an operator without a rule."""


class RegistryError(EdgecnnError):
    """A backend or exporter that is unknown, broken, or claimed by two distributions."""


class MissingPackageError(RegistryError):
    """A known backend or exporter whose package is not installed."""


class BackendError(EdgecnnError):
    """A backend that could not load or run an artifact."""


class DeviceError(BackendError):
    """A device that was asked for and not obtained."""


class ContractError(BackendError):
    """Tensors that do not match the session's specification, on the way in or out."""


class VerdictError(EdgecnnError):
    """The work was done and the answer is no: a parity, accuracy or bench gate was not met."""

    exit_code = 3
