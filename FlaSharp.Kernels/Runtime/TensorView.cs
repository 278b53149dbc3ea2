namespace FlaSharp.Kernels.Runtime;

/// <summary>fla::TensorView: a tensor [B, T, H, D] with dense rows [D]; strides in elements. The default is no tensor.</summary>
internal readonly record struct TensorView(nint Data, long Batch, long Time, long Head);
