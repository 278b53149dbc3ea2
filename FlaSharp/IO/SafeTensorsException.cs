namespace FlaSharp.IO;

/// <summary>A file is not what the safetensors format asks for, or holds what this reader does not support.</summary>
/// <param name="path">The file.</param>
/// <param name="problem">What is wrong with it.</param>
/// <param name="innerException">The cause, where there is one.</param>
public sealed class SafeTensorsException(string path, string problem, Exception? innerException = null)
    : IOException($"Cannot read '{path}' as safetensors: {problem}", innerException)
{
    /// <summary>The file that could not be read.</summary>
    public string Path => path;
}
