using System.Runtime.InteropServices;
using FlaSharp.Autograd;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp;

/// <summary>Starts a backward pass in the way that reports failures of FlaSharp's operations.</summary>
public static class TensorBackward
{
    /// <summary>
    /// Like <c>loss.backward()</c>, and throws what an operation of FlaSharp threw during the pass. After a plain
    /// <c>loss.backward()</c> such an exception appears at the next call of a FlaSharp operation instead, because it cannot cross
    /// the native autograd engine.
    /// </summary>
    /// <param name="loss">A scalar, or any tensor if <paramref name="gradient"/> is given.</param>
    /// <param name="gradient">The gradient of the result in <paramref name="loss"/>, of the same shape; 1 if absent.</param>
    /// <exception cref="Exception">Whatever the failing operation threw. Gradients may be incomplete then.</exception>
    public static void Backward(this Tensor loss, Tensor? gradient = null)
    {
        ArgumentNullException.ThrowIfNull(loss);
        BackwardFailure.ThrowIfAny();
        try
        {
            if (gradient is null)
                loss.backward();
            else
                loss.backward([gradient]);
        }
        catch (ExternalException)
        {
            BackwardFailure.ThrowIfAny(); // the earlier failure is the cause
            throw;
        }
        finally
        {
            ParkedGradients.Release();
        }
        BackwardFailure.ThrowIfAny();
    }
}
