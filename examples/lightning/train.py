"""An ordinary Lightning project: a classifier of Fashion-MNIST in shards, and its accuracy on a test set.

python train.py
"""

from glob import glob

import lightning as L
import torch
import webdataset as wds
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.functional import cross_entropy


class Classifier(L.LightningModule):
    def __init__(self, pixels=784, classes=10, lr=1e-3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, classes)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = cross_entropy(self(x), y)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean(), batch_size=len(y), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def images(folder, batch_size, shuffle=0):
    samples = wds.WebDataset(sorted(glob(f"{folder}/*.tar")), shardshuffle=shuffle).shuffle(shuffle)
    pairs = samples.decode("torchl").to_tuple("png", "cls").map_tuple(lambda x: (x - 0.5) / 0.5, int)
    return torch.utils.data.DataLoader(pairs.batched(batch_size), batch_size=None, num_workers=1)


if __name__ == "__main__":
    L.seed_everything(0)
    saver = ModelCheckpoint("checkpoints", every_n_train_steps=100, save_top_k=-1, save_last=True)
    trainer = L.Trainer(max_epochs=5, callbacks=[saver], devices=1)
    train, test = images("shards", 32, shuffle=1000), images("test", 100)
    trainer.fit(Classifier(), train, test, ckpt_path="last")
