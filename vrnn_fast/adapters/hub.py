"""Models on a hub: ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``, by ``PyTorchModelHubMixin``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download

from ..checkpoints import files
from ..checkpoints.convert import HEADER, made, write
from ..checkpoints.files import CheckpointError
from ..likelihoods import Likelihood
from ..model import VRNN

if TYPE_CHECKING:
    from typing_extensions import Self

FILE = "model.safetensors"
_OF_A_CALL = ("backend", "recompute", "check_values", "batch_first")


class HubVRNN(VRNN, PyTorchModelHubMixin, library_name="vrnn-fast", tags=["vrnn"]):  # type: ignore[misc, call-arg]
    """A :class:`~vrnn_fast.VRNN` with the methods of the mixin.

    The file of the parameters says by itself what the model is, its likelihood with all constants too:
    :func:`vrnn_fast.load_checkpoint` reads it without the hub's library. A likelihood of your own is passed again:
    ``HubVRNN.from_pretrained(folder, likelihood=Mine())``.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        write(self, Path(save_directory) / FILE)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments: Any) -> Self:
        """Return the model in a folder or on a hub.

        Args:
            pretrained_model_name_or_path: which.
            arguments: of the mixin; and of VRNN those that no training changes, ``backend``, ``recompute``,
                ``check_values``, ``batch_first``, and a likelihood object.

        Raises:
            ValueError, TypeError: an argument that the file tells, or that there is not. CheckpointError: it holds no
                such model.
        """
        own = inspect.signature(cls.__init__).parameters
        known = {*inspect.signature(super().from_pretrained).parameters, *_OF_A_CALL, "map_location", "strict"}
        for name, given in arguments.items():
            if name in known or (name == "likelihood" and isinstance(given, Likelihood)):
                continue
            if name in own:
                place = pretrained_model_name_or_path
                raise ValueError(f"{name} must be that of the model in {place}, which has learnt: leave it out")
            raise TypeError(f"from_pretrained() got an unexpected keyword argument {name!r}")
        return cast("Self", super().from_pretrained(pretrained_model_name_or_path, **arguments))

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = False,
        **arguments: Any,
    ) -> Self:
        path = Path(model_id, FILE)
        if not Path(model_id).is_dir():
            path = Path(
                hf_hub_download(
                    model_id, FILE, revision=revision, cache_dir=cache_dir, force_download=force_download,
                    local_files_only=local_files_only, token=token,
                )
            )  # fmt: skip
        tensors, header = files.load(path)
        if HEADER not in header:
            raise CheckpointError(f"{path} was not written by HubVRNN.save_pretrained")
        given = {name: value for name, value in arguments.items() if name in _OF_A_CALL and value is not None}
        if isinstance(arguments.get("likelihood"), Likelihood):
            given["likelihood"] = arguments["likelihood"]  # what is none comes of the configuration
        model = made(header[HEADER], tensors, given, cls)
        model.to(map_location)
        return model
