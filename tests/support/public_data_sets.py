"""Small imitations of public data sets as their owners lay them out: tables, folders, images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from support.image_files import dicom, smooth_grey, xray

CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"


def lines(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def png(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(smooth_grey(seed=len(path.name)).astype(np.uint8)).save(path, format="PNG")
    return path


def dcm(path: Path, **elements: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    elements = {"PatientID": path.stem, **elements}
    path.write_bytes(dicom(xray(smooth_grey().astype(np.uint8), **elements)))
    return path


def rsna(root: Path, *, mapping: bool = False) -> Path:
    lines(
        root / "stage_2_train_labels.csv",
        "patientId,x,y,width,height,Target",
        "aaa,264.0,152.0,213.0,379.0,1",
        "aaa,562.0,152.0,256.0,453.0,1",
        "bbb,,,,,0",
        "ccc,,,,,0",
        "ddd,1.0,2.0,3.0,4.0,1",
        "eee,,,,,0",
    )
    lines(
        root / "stage_2_detailed_class_info.csv",
        "patientId,class",
        "aaa,Lung Opacity",
        "aaa,Lung Opacity",
        "bbb,Normal",
        "ccc,No Lung Opacity / Not Normal",
        "ddd,Normal",
        "eee,Normal",
    )
    images = root / "stage_2_train_images"
    dcm(images / "aaa.dcm", PatientAge="4", PatientSex="F", ViewPosition="AP")
    dcm(images / "bbb.dcm", PatientAge="51", PatientSex="M", ViewPosition="PA")
    dcm(images / "ccc.dcm", PatientAge="60", PatientSex="M", ViewPosition="PA")
    dcm(images / "ddd.dcm")
    if mapping:
        items = [
            {"img_id": "00000013_005.png", "subset_img_id": "aaa", "orig_labels": ["Pneumonia"]},
            {"img_id": "00000013_006.png", "subset_img_id": "bbb", "orig_labels": []},
        ]
        (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(items))
    return root


def nih(root: Path, *, edition: int = 2017) -> Path:
    sex = "Patient Gender" if edition == 2017 else "Patient Sex"
    name = "Data_Entry_2017.csv" if edition == 2017 else "Data_Entry_2017_v2020.csv"
    years = "Y" if edition == 2017 else ""
    lines(
        root / name,
        f"Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,{sex},View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
        f"00000001_000.png,No Finding,0,1,004{years},F,AP,2682,2749,0.143,0.143,",
        f"00000001_001.png,Pneumonia,1,1,005{years},F,AP,2682,2749,0.143,0.143,",
        f"00000002_000.png,Infiltration|Pneumonia,0,2,081{years},M,PA,2500,2048,0.171,0.171,",
        f"00000003_000.png,Cardiomegaly|Effusion,0,3,058{years},M,PA,2500,2048,0.171,0.171,",
        f"00000004_000.png,No Finding,0,4,414{years},M,PA,2500,2048,0.171,0.171,",
        f"00000005_000.png,No Finding,0,5,030{years},F,PA,2500,2048,0.171,0.171,",
    )
    for k, image in enumerate(("1_000", "1_001", "2_000", "3_000", "4_000")):
        png(root / f"images_00{1 + k % 2}" / "images" / f"0000000{image}.png")
    lines(root / "test_list.txt", "00000002_000.png", "00000004_000.png")
    lines(root / "train_val_list.txt", "00000001_000.png", "00000001_001.png")
    return root


def chexpert(root: Path) -> Path:
    inside = "CheXpert-v1.0-small"

    def row(path: str, facts: str, no_finding: str, edema: str, pneumonia: str) -> str:
        return f"{inside}/{path},{facts},{no_finding},,,,,{edema},,{pneumonia},,,,,,"

    paths = [f"train/patient0000{k}/study1/view1_frontal.jpg" for k in range(1, 6)]
    lateral = "train/patient00001/study1/view2_lateral.jpg"
    lines(
        root / "train.csv",
        CHEXPERT_HEADER,
        row(paths[0], "Female,68,Frontal,AP", "", "", "1.0"),
        row(lateral, "Female,68,Lateral,", "", "", "1.0"),
        row(paths[1], "Male,35,Frontal,PA", "1.0", "", ""),
        row(paths[2], "Male,90,Frontal,AP", "", "1.0", "-1.0"),
        row(paths[3], "Male,90,Frontal,AP", "", "1.0", "0.0"),
        row(paths[4], "Unknown,0,Frontal,AP", "", "", ""),
    )
    valid = "valid/patient64541/study1/view1_frontal.jpg"
    lines(root / "valid.csv", CHEXPERT_HEADER, row(valid, "Male,73,Frontal,AP", "1.0", "", "0.0"))
    for path in (*paths, lateral, valid):
        png(root / path)
    return root


def vindr(root: Path) -> Path:
    header = (
        "image_id,rad_ID,No finding,Bronchitis,Brocho-pneumonia,Other disease,Bronchiolitis,"
        "Situs inversus,Pneumonia,Pleuro-pneumonia,Diagphramatic hernia,Tuberculosis,"
        "Congenital emphysema,CPAM,Hyaline membrane disease,Mediastinal tumor,Lung tumor"
    )
    columns = header.split(",")[2:]

    def row(image: str, *findings: str, reader: str = "R1") -> str:
        return ",".join([image, reader, *("1.0" if c in findings else "0.0" for c in columns)])

    lines(
        root / "image_labels_train.csv",
        header,
        row("a1", "No finding"),
        row("a2", "Brocho-pneumonia", "Bronchitis"),
        row("a3", "Bronchiolitis"),
        row("a4", "Pleuro-pneumonia"),
    )
    lines(
        root / "image_labels_test.csv",
        header,
        row("b1", "Pneumonia"),
        row("b2", "No finding", reader="R1"),
        row("b2", "No finding", reader="R2"),
        row("b2", "Pneumonia", reader="R3"),
        row("b3", "No finding", reader="R1"),
        row("b3", "Pneumonia", reader="R2"),
    )
    ages = {"a1": "004Y", "a2": "010M", "a3": "002Y", "a4": "", "b1": "007Y", "b2": "003Y"}
    for image, age in ages.items():
        split = "train" if image[0] == "a" else "test"
        dcm(root / split / f"{image}.dicom", PatientAge=age, PatientSex="M", PatientID="")
    dcm(root / "test/b3.dicom")
    return root


def padchest_rows() -> tuple[str, ...]:
    return (
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,"
        "ViewPosition_DICOM,Projection,Pediatric,Report,MethodLabel,Labels",
        "0,p1.png,0,20140915,s1,11,1930.0,F,POSTEROANTERIOR,PA,No,sin hallazgos ,Physician,"
        "\"['normal']\"",
        "1,p2.png,0,20150101,s2,12,2011,M,ANTEROPOSTERIOR,AP_horizontal,PED,condensacion ,"
        "RNN_model,\"['infiltrates', 'pneumonia']\"",
        "2,p3.png,1,20150101,s3,13,1950,M,LATERAL,L,No,x,Physician,\"['normal']\"",
        "3,p4.png,1,20150101,s4,14,1950,M,,PA,No,x,Physician,\"['cardiomegaly', 'unchanged']\"",
        "4,p5.png,1,20150101,s5,15,1950,M,,PA,No,x,Physician,\"['suboptimal study', 'normal']\"",
        "5,p6.png,1,20150101,s6,16,,M,,PA,No,x,Physician,nan",
        "6,p7.png,1,20150101,s7,17,1950,M,,PA,No,x,Physician,\"['atypical pneumonia']\"",
    )


def padchest(root: Path) -> Path:
    lines(root / PADCHEST, *padchest_rows())
    for k, folder in ((1, "0"), (2, "0"), (3, "1"), (4, "1"), (5, "1"), (6, "1")):
        png(root / folder / f"p{k}.png")
    return root
