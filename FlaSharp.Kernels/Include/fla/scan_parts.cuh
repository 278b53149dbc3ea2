// How the backward pass of the selective scan leaves what is to be added up.
#pragma once
#include "fla/types.cuh"

namespace fla {

// What is kept of numbers that end in tensors of type T: as SelectiveScanTile.KeptAs.
template <class T> struct ScanKept { typedef float Type; };
template <> struct ScanKept<bf16> { typedef bf16 Type; };

} // namespace fla
