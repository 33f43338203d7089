"""Train a VRNN with Lightning, which brings the loop, the logging and the checkpoints.

Learn: a VRNN is an ordinary sub-module. A batch comes from a DataLoader as (B, T, X), so it is built with
``batch_first``; the KL's weight follows the trainer's global step.
"""

import logging
import sys
import warnings

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from vrnn_fast import VRNN

try:
    import lightning
except ImportError:
    sys.exit("this example needs Lightning: pip install lightning")


class Sequences(lightning.LightningModule):
    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.model = VRNN(input_size, hidden_size=32, latent_size=4, likelihood="gaussian", batch_first=True)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, lengths = batch
        return self.model(x, lengths, beta=min(1.0, (self.global_step + 1) / 30)).loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        x, lengths = batch
        self.log("nats per step", self.model(x, lengths).loss, batch_size=int(lengths.sum()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


lightning.seed_everything(0, verbose=False)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")  # of a data set this small it has opinions
x = torch.sin(0.3 * torch.arange(50).view(1, 50, 1) + 6.28 * torch.rand(128, 1, 2)) + 0.1 * torch.randn(128, 50, 2)
data = TensorDataset(x, torch.randint(25, 51, (128,)))
train, test = DataLoader(data, 32, shuffle=True, generator=torch.Generator().manual_seed(0)), DataLoader(data, 128)

quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=20, accelerator="cpu", **quiet)
model = Sequences(2)
before = trainer.validate(model, test, verbose=False)[0]["nats per step"]
trainer.fit(model, train)
after = trainer.validate(model, test, verbose=False)[0]["nats per step"]
print(f"nats per step: {before:.2f} untrained, {after:.2f} after {trainer.global_step} updates")
