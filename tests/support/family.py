"""Members of the family of cells: one of each kind, with odd widths."""

from __future__ import annotations

from typing import Any

DEEP = {"phi_x": (9, 17), "phi_z": (5,), "encoder": (33, 8), "prior": (7,), "decoder": (17, 6)}
EVERYWHERE = ("encoder", "prior", "decoder", "cell")
ORDERS = (
    ("encoder", ("h", "phi_x", "cond")),
    ("prior", ("h", "cond")),
    ("decoder", ("h", "phi_z", "cond")),
    ("cell", ("cond", "phi_z", "phi_x")),
)
OWN = (("phi_x", "leaky_relu"), ("phi_z", "elu"), ("encoder", "tanh"), ("prior", "identity"))
AFFINE = (
    ("phi_x", ("elu", "identity")),
    ("phi_z", ("identity",)),
    ("encoder", ("tanh", "identity")),
    ("decoder", ("identity", "relu")),
)
SMOOTH = (
    ("phi_x", ("silu", "gelu")),
    ("phi_z", "gelu"),
    ("encoder", ("gelu", "silu")),
    ("decoder", ("silu", "tanh")),
    ("enc_std", ("gelu", "elu")),
    ("prior_std", "gelu"),
)
STATE_SPACE = (("encoder", ("h", "phi_x")), ("decoder", ("z", "h")), ("cell", ("phi_z",)))
TANH = (("prior_mean", ("tanh", "identity")),)
APART = (("enc_std", (4,)), ("prior_mean", (9, 17)), ("prior_std", (3,)), ("dec_mean", (18, 4)))
NO_Z: dict[str, Any] = {"latent_size": 0, "phi_z": (), "encoder": (), "prior": None}
FAMILY: dict[str, dict[str, Any]] = {
    "two layers": {"num_layers": 2},
    "three layers without bias": {"num_layers": 3, "bias": False},
    "deep heads": {"head_layers": (4, 9), "activation": "silu"},
    "packed heads": {"packed_heads": True},
    "packed deep heads": {"packed_heads": True, "head_layers": (17,)},
    "conditioned": {"cond_size": 2},
    "conditioned everywhere": {"cond_size": 33, "cond_networks": EVERYWHERE},
    "conditioned encoder": {"cond_size": 2, "cond_networks": ("encoder",)},
    "conditioned cell": {"cond_size": 2, "cond_networks": ("cell",)},
    "conditioned residual": {"cond_size": 2, "residual": True},
    "other columns": {"cond_size": 2, "cond_networks": EVERYWHERE, "input_order": ORDERS, "residual": True},
    "state-space": {"cond_size": 2, "cond_networks": ("phi_z",), "phi_z": (5,), "input_order": STATE_SPACE},
    "normalised": {"normalized": tuple(DEEP), "head_layers": (4,), "residual": True, "activation": "gelu"},
    "some normalised": {
        "normalized": ("encoder", "decoder"),
        "norm_eps": 1e-3,
        "activations": SMOOTH,
        **DEEP,
        "head_layers": (4, 9),
    },
    "activations of their own": {"activations": OWN, "head_layers": (4,)},
    "affine ends": {"activations": AFFINE, **DEEP},
    "smooth activations": {"activations": SMOOTH, "activation": "silu", **DEEP, "head_layers": (4, 9)},
    "heads of their own": {"own_layers": APART, "activations": TANH, "cond_size": 2, "residual": True},
    "packed heads of their own": {"packed_heads": True, "own_layers": (("enc_params", (4,)), ("dec_params", (9, 17)))},
    "all at once": {
        "cond_size": 2,
        "cond_networks": EVERYWHERE,
        "residual": True,
        "num_layers": 2,
        "head_layers": (4,),
    },
    "no z": NO_Z,
    "no z, the rest": NO_Z | {"cond_size": 2, "cond_networks": EVERYWHERE, "num_layers": 3, "head_layers": (4,)},
}
