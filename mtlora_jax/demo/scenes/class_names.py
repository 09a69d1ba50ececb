"""Class indices of the objects in scenes."""

from mtlora_jax.tasks.semseg import VOC_CLASSES

VOC = {name: number for number, name in enumerate(VOC_CLASSES)}

CONTEXT = {  # of PASCAL-Context's 459 classes
    "aeroplane": 2,
    "bicycle": 23,
    "bird": 25,
    "boat": 31,
    "bottle": 34,
    "building": 44,
    "bus": 45,
    "car": 59,
    "cat": 65,
    "ceiling": 68,
    "chair": 72,
    "cow": 98,
    "curtain": 105,
    "diningtable": 397,  # "table" there
    "dog": 113,
    "door": 115,
    "fence": 144,
    "floor": 158,
    "grass": 187,
    "ground": 189,
    "horse": 207,
    "motorbike": 258,
    "mountain": 259,
    "person": 284,
    "picture": 287,
    "pottedplant": 308,
    "road": 324,
    "rug": 330,
    "sand": 334,
    "sheep": 347,
    "sky": 360,
    "sofa": 368,
    "train": 416,
    "tree": 420,
    "tvmonitor": 427,
    "wall": 440,
    "window": 454,
}
