using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>A shape of an operation: what it is called with, and what it has to do.</summary>
internal interface IOperationShape
{
    /// <summary>Elements of a set of inputs, with the gradient of the output.</summary>
    long SetElements { get; }

    /// <summary>Elements that forward has to move.</summary>
    long ForwardElements { get; }

    /// <summary>The same of backward.</summary>
    long BackwardElements { get; }

    /// <summary>Operations of forward's products; null where something else takes the time.</summary>
    double? ForwardFlops { get; }

    /// <summary>The same of backward.</summary>
    double? BackwardFlops { get; }

    /// <summary>The ways to compute it that are measured; an empty name if there is one.</summary>
    IReadOnlyList<string> Ways(ScalarType dtype, Device device);

    /// <summary>What computes it.</summary>
    string Takes(string way, ScalarType dtype, Device device);

    /// <summary>The name in the JSON of bench_peers.py of what a way is compared with.</summary>
    string PeerKey(string way);

    OperationInputs Inputs(ScalarType dtype, Device device);
}
