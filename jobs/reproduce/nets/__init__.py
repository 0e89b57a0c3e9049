"""The seven architectures of Fig. 2 in Phan's CIFAR forms (huyvnphan/PyTorch_CIFAR10, which the paper's App. B names).

Each is a model by name like a user's own: `--model jobs.reproduce.nets:resnet34`, from a clone of the repository. They
are torchvision's networks with a stem of stride 1, for images of 16 pixels and more; weights are drawn as Phan's.
"""

from jobs.reproduce.nets.densenet import densenet121
from jobs.reproduce.nets.googlenet import googlenet
from jobs.reproduce.nets.inception import inception_v3
from jobs.reproduce.nets.mobilenet import mobilenet_v2
from jobs.reproduce.nets.resnet import resnet34, resnet50
from jobs.reproduce.nets.vgg import vgg11_bn

__all__ = ["densenet121", "googlenet", "inception_v3", "mobilenet_v2", "resnet34", "resnet50", "vgg11_bn"]
