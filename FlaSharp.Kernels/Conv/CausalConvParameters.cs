namespace FlaSharp.Kernels.Conv;

/// <summary>fla::ConvParameters: weights [E, W] and biases [E], each in the dtype of x or in float32.</summary>
/// <param name="Weight">On the device.</param>
/// <param name="Bias">Or 0.</param>
/// <param name="FloatWeight">1 for float32, else 0.</param>
/// <param name="FloatBias">1 for float32, else 0.</param>
internal readonly record struct CausalConvParameters(nint Weight, nint Bias, int FloatWeight, int FloatBias);
