#!/usr/bin/env bash
# Runs a program of a GPU bundle on the libtorch of this machine's Python.
#
#   eng/run-on-python-libtorch.sh BUNDLE PROGRAM [ARGUMENT...]
#
# BUNDLE is what pack-gpu-bundle.sh made, or the folder it was unpacked to. PROGRAM is FlaSharp.Tests, LanguageModel, ...
# FLASHARP_LIBTORCH=FOLDER names another folder with libtorch.so.
set -euo pipefail

if (( $# < 2 )); then
    sed -n '2,/^set/p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
    exit 2
fi
bundle=$1 program=$2
shift 2

if [[ -f $bundle ]]; then
    folder=${bundle%.tar.xz}
    if [[ ! -d $folder || $bundle -nt $folder ]]; then
        rm -rf "$folder"
        mkdir -p "$folder"
        tar -C "$folder" --strip-components=1 -xJf "$bundle"
    fi
    bundle=$folder
fi

if [[ -n ${FLASHARP_LIBTORCH:-} ]]; then
    libraries=$FLASHARP_LIBTORCH
else
    # find_spec does not import torch, which takes seconds. The CUDA libraries lie beside it in site-packages.
    libraries=$(python3 - <<'PYTHON'
import glob, importlib.util, os, sys
spec = importlib.util.find_spec("torch")
if spec is None or not spec.submodule_search_locations:
    sys.exit("python3 has no torch: install it, or name a folder with libtorch.so in FLASHARP_LIBTORCH")
torch = list(spec.submodule_search_locations)[0]
nvidia = sorted(glob.glob(os.path.join(os.path.dirname(torch), "nvidia", "**", "lib"), recursive=True))
print(":".join([os.path.join(torch, "lib"), *nvidia]))
PYTHON
    )
fi
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
exec "$bundle/$program" "$@"
