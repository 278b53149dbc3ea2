#!/usr/bin/env bash
# Packs the tests and the samples for a GPU machine that has no .NET SDK and no internet, only a Python PyTorch.
#
#   eng/pack-gpu-bundle.sh [OUTPUT.tar.xz]        (default: artifacts/flasharp-gpu.tar.xz)
#
# Each program is published self-contained for linux-x64 into one folder, so that the .NET runtime is there once. None brings
# libtorch: run-on-python-libtorch.sh, which is packed too, finds the one of the machine's Python.
set -euo pipefail
cd "$(dirname "$0")/.."

output=$(realpath -m "${1:-artifacts/flasharp-gpu.tar.xz}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/flasharp
mkdir -p "$bundle" "$(dirname "$output")"

projects=(FlaSharp.Tests/FlaSharp.Tests.csproj)
for project in samples/*/*.csproj; do
    if [[ -f $project ]]; then projects+=("$project"); fi
done

for project in "${projects[@]}"; do
    echo "publishing $project"
    # A folder of its own for obj: the ordinary build keeps its own choice of libtorch.
    dotnet publish "$project" -c Release -r linux-x64 --self-contained -nologo -v quiet -o "$bundle" --artifacts-path "$work/build" \
        -p:TorchBackend=none -p:FlaSharpWeakenGlibcxx=always -p:DebugType=none -p:GenerateDocumentationFile=false \
        -p:CreateHardLinksForCopyLocalIfPossible=false -p:CreateSymbolicLinksForCopyLocalIfPossible=false \
        -p:UseSharedCompilation=false -nodeReuse:false
done
cp eng/run-on-python-libtorch.sh "$bundle"
find "$bundle" -name '*.pdb' -delete

tar -C "$work" --sort=name --owner=0 --group=0 -cf - flasharp | xz -T0 -9e > "$output"
echo "$output: $(du -m "$output" | cut -f1) MB, $(du -sm "$bundle" | cut -f1) MB unpacked"
