"""A weight file on which the HDF5 library crashes or loops is rejected, and this process lives."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pneumoscope import reading
from pneumoscope.errors import BundleError, InputError
from pneumoscope.graph import archive
from pneumoscope.graph.archive import open_weight_file, read_description
from pneumoscope.graph.bundle_files import MANIFEST, default_folder, read_manifest
from pneumoscope.graph.plan import read_plan
from pneumoscope.inference.weights_store import read_table
from support.archives import bomb_weights, lying_archive

CRASHING = (
    "c-rlo&2G~`5P)~>M0E;LQmIk{ml~lo;e^u`RFxu%Xut<VBjDg;B2+a8C<vqqxWEM|+<NpQL_7fp4mn2R1vql-"
    "F>g>}@2=xn;-9Ln^5glWXte8z?aWSQ$1}-ybMJ9}@%kch&@_@EMdIg-W9-7QINs!va@pastB85(9xL(rC4PQc@8$D)-"
    "O)ai5ZC#eWl|#&KYnc<4nF_Z2{O-^^@j~dT6`?Lw68$D*R4+n?>~(E(Y)YwgZ$T2*|?pJ=f9^pCQG=K=)Xfmyy|43-"
    "mAAq#|D=*F4ukWb?cnheerC6&+%XpH+2=pYuS&H^TmP20vo@}#ft-je84`2q<SAa$w9s2ma~f`w~w(npn85+U4U^w_G2"
    "##yb1NHd~BBCe%4!qdhNS>-"
    "&>ovIG}<!P~?`{D!_a=Dh_mY$<9cs<ACrdI}h~?E^E?r*6xMkz$hOuuE6tJeEczwYZQjq|7Ck!<tsx;mMjmgeAIe#;Eb"
    "<*Yq;+ydbZYp-JSHyE{xXV$)o+J)E6N9dj33788h$riaKU~-"
    "FN@p0<Ix~AP9mW2!bF8f=n8xen5Q>{*+gMX@*UR=X)U)Nk$(pxu;&zS4qa5(aDNNR=#+31I<0ID2jVQjaR5tYFC)XiFC"
    ")-"
    "rP_nltrV|rWv_<oi@NII2KrLCU$J$ilqT#a)hg4FJ6)YAv&Z<pp4{h%s^|Z#jsLVrItc3PwaZX1>Aqf2KdQ<5Zq0!E6Z"
    ")FepG&&mAihubZ8kpT_6V$#593hWI=K?^{gwNVLF=PcCbK^69k@RK^YsC~=HZ1P2!bH-iF)2BZo)hUNf+|(czR`+ugm#"
    "1GHZ1<qdE<BHnI_~&Su>~Uz$vvtv3^Owy6C~zlZfR%y)wQ<IjD}chXEy{j$Fe^)CDO(#;AyZ-"
    "@UOtGkVB6o&V|U&&rc)PdEh&g1%1k;nCS;^lEVRxBr!$62>#A&>h9PcCYq"
)
"""A mutated file of 16 KB on which HDF5 ends with a segmentation fault (zlib, base 85)."""

LOOPING = (
    "c-rlo&2G~`5P)~>M0E;LQi0UKrA8=?IpLHaRi%g^8t?(p3OM+f2vy1f3IeHu6CA^>M?XRyfn$z&1dbeg>>HG>ch>Q4;-"
    "9LnlGO7_(P-Bb+nJrrj%SkJ&d$s7^6h29Fbq;4RTAbDuv_w29PfanAp0N(nwY2lu^P;;!1-"
    "0Z_ix*6rhTd)uJf<Rr9qH9;<TUdG3mlsc<D%!^*(lg?0@|>_DAP}*NyUDN9W^SF`fS&m$<CqQlkH!VTyQJl=VJ*J~*^N"
    "HbHKL;_K!)ulw%J?hf-"
    "{5jRa;j@POmBj<|)drN%$rIaoXoRo1N!#FUxj~$g{y~8fs#j@MScpT6Jzq6L)IH3A*kOkhA^(+`Wb$LG<uFHD8$FT3MU"
    "$r=(OL3qImfEby`EXJk7?_HkkzB_C;ZI&!*0Vu2mFKM1h2p?CAF!{<=XGKHy^L!VhuHsBdtHZ>p`=J|o>}>z`)QwzZ&B"
    "*MqZ-"
    ")SknGOVFRwCQi&rmpUo+XdK_>LVd7?IDp81MCWqu=c|APvyA%Y+Xf*=TjAP9oY8dg7`p$C5o6<}K66XN+^NKKK+$7}wn"
    "SIjk1@Mlc2YLL~RLEXUck87IdU(kRGl}^0|*Emw{*u7MH@Vb>2)UCX=czsb<J-LIv6z^AjT`8p*`-"
    "x?74YkwNpEG+*@9U|3j--12pXT&Wi{yi-zFw~`>t)^7i|R*ppzqd+xIdw9DE+yt`wimz<lX1vW3WdSb#g7{`>XaJqt?f"
    "0%w~Oh+w%HM^6MGCuEGmJ5ClQelk~h%eJJNKNWM^i$1|+U`MR2KBa2pNv#oikvylhs>TK>K^rhL<*@g>IXG_}8%qLhs!"
    "+a;&KmI<&d?(LD)h|a|vfgF?Ub@qe&)bJTWDT}(jp7LY_p8_|i#o7A*LmD%F7mk1cDg*y#ERvN@;LY2BII%Z0m3(By8"
)
"""One that HDF5 reads for ever."""


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_KNOWN", set())


def weights(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/conv/vars")
        group.attrs["name"] = "conv"
        group["0"] = np.ones((3, 3, 2, 2), np.float32)
    return path


def names_of(path: Path) -> list[str]:
    with open_weight_file(path) as stored:
        return list(stored.by_name)


def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", started)


def unpacked(path: Path, text: str) -> Path:
    path.write_bytes(zlib.decompress(base64.b85decode(text)))
    return path


def test_a_file_that_crashes_the_library_is_rejected(tmp_path: Path) -> None:
    """By the process that read it; by this one with an HDF5 library in which that is mended."""
    path = unpacked(tmp_path / "weights.h5", CRASHING)
    with pytest.raises(InputError, match=r"weights\.h5 (can't be read: .*signal 11|is damaged)"):
        names_of(path)


def test_a_file_that_is_read_for_ever_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unpacked(tmp_path / "weights.h5", LOOPING)
    monkeypatch.setattr(reading, "MOST_SECONDS", 3)
    with pytest.raises(
        InputError, match=r"weights\.h5 is damaged: (reading it takes more than 3)?"
    ):
        names_of(path)


def test_a_process_that_can_not_run_is_no_reason_to_read_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights(tmp_path / "weights.h5")
    monkeypatch.setattr(archive, "_READ", "import a_module_that_is_missing")
    with pytest.raises(InputError, match="No module named 'a_module_that_is_missing'"):
        names_of(path)


def test_a_damaged_file_is_rejected_with_the_words_of_this_process(tmp_path: Path) -> None:
    path = weights(tmp_path / "weights.h5")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match=r"weights\.h5 is damaged: .*truncated"):
        names_of(path)


def test_a_file_is_read_by_another_process_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    path = weights(tmp_path / "weights.h5")
    assert names_of(path) == ["conv"]
    without_processes(monkeypatch)
    assert names_of(path) == ["conv"]
    reading._KNOWN.clear()  # as in the next process, which has the cache
    assert names_of(path) == ["conv"]
    with h5py.File(path, "a") as file:
        file.attrs["more"] = 1
    with pytest.raises(AssertionError, match="a process was started"):
        names_of(path)


def test_what_this_process_wrote_needs_no_other_and_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights(tmp_path / "weights.h5")
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(path))  # no folder
    without_processes(monkeypatch)
    reading.vouch(path)
    assert names_of(path) == ["conv"]


def test_the_model_that_ships_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)
    assert "head_hidden" in names_of(default_folder() / "model.keras")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_rejected_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(BundleError, match="not a regular file"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="not a regular file"):
        names_of(tmp_path / MANIFEST)


def test_a_chunk_that_unpacks_to_more_than_it_states_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bomb\.h5: a chunk of .* more than the 16,384 b"):
        names_of(bomb_weights(tmp_path / "bomb.h5", zeros=1 << 20))


@pytest.mark.parametrize("packing", [{"compression": "gzip"}, {"shuffle": True}, {}])
def test_packed_weights_are_read(tmp_path: Path, packing: dict[str, Any]) -> None:
    with h5py.File(tmp_path / "packed.h5", "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "dense"
        noise = np.random.default_rng(0).random((64, 65), np.float32)
        group.create_dataset("0", data=noise, chunks=(16, 16), fletcher32=True, **packing)
    assert names_of(tmp_path / "packed.h5") == ["dense"]


def test_other_packings_are_rejected(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "packed.h5", "w") as file:
        file.create_dataset("a", data=np.zeros(4096), compression="lzf")
    with pytest.raises(InputError, match="not packed with gzip alone"):
        names_of(tmp_path / "packed.h5")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_the_process_that_reads_first_has_a_limit_of_memory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ended with MemoryError"):
        reading.vet(weights(tmp_path / "weights.h5"), f"bytes({2 * reading.MOST_MEMORY})")


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_no_member_unpacks_beyond_what_is_allowed(
    tmp_path: Path, packing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by the pieces that leave zipfile, each of `PIECE_BYTES` at most."""
    longest = []
    original = zipfile.ZipExtFile.read

    def read(self: zipfile.ZipExtFile, count: int | None = -1) -> bytes:
        longest.append(count)
        return original(self, count)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    header = io.BytesIO()
    np.save(header, np.zeros(100, np.uint8))
    table = lying_archive(
        tmp_path / "t.npz", "x.npy", header.getvalue(), zeros=1 << 20, packing=packing
    )
    with pytest.raises(BundleError, match=r"t\.npz"):
        read_table(table)
    model = lying_archive(
        tmp_path / "m.keras", "config.json", b"{}", zeros=1 << 20, packing=packing
    )
    with pytest.raises(InputError, match=r"m\.keras"):
        read_description(model)
    assert set(longest) <= {reading.PIECE_BYTES}
    assert bool(longest) == (packing == zipfile.ZIP_DEFLATED)


def test_a_description_nested_deeply_is_rejected() -> None:
    arguments: list[Any] = []
    for _ in range(3000):
        arguments = [arguments]
    layer = {
        "class_name": "ReLU",
        "name": "a",
        "config": {"name": "a"},
        "inbound_nodes": [{"args": arguments, "kwargs": {}}],
    }
    with pytest.raises(BundleError, match="description can't be read"):
        read_plan({"class_name": "Functional", "config": {"layers": [layer]}})
