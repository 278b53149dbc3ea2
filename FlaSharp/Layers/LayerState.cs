namespace FlaSharp.Layers;

/// <summary>Pending.</summary>
public sealed class LayerState : IDisposable
{
    /// <summary>Frees the tensors.</summary>
    public void Dispose() { }
}
