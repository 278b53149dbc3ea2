using FlaSharp.Interop;
using FlaSharp.IO;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Models;

public sealed partial class CausalLM
{
    private const string ConfigFile = "config.json";
    private const string WeightsFile = "model.safetensors";

    /// <summary>Loads a model as Hugging Face's <c>save_pretrained</c> stores it.</summary>
    /// <param name="directory">
    /// A folder with <c>config.json</c> (model_type gla, mamba, mamba2, llama or transformer) and <c>model.safetensors</c>, or
    /// the files that <c>model.safetensors.index.json</c> names.
    /// </param>
    /// <param name="device">Where to put the model; the CPU if null.</param>
    /// <param name="dtype">
    /// Of the parameters: float32, float16 or bfloat16; that of the largest stored tensor if null. Decays and step sizes are
    /// float32 always.
    /// </param>
    /// <exception cref="FileNotFoundException">A file is missing.</exception>
    /// <exception cref="InvalidDataException">config.json is wrong: the message names the field and its value.</exception>
    /// <exception cref="SafeTensorsException">A file of tensors is broken.</exception>
    /// <exception cref="CheckpointMismatchException">The tensors are not those of the model in config.json.</exception>
    public static CausalLM FromPretrained(string directory, Device? device = null, ScalarType? dtype = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(directory);
        var configPath = Path.Combine(directory, ConfigFile);
        if (!File.Exists(configPath))
            throw new FileNotFoundException($"'{directory}' has no {ConfigFile}.", configPath);
        var config = ModelConfig.Load(configPath);
        var tensors = SafeTensors.LoadDirectory(directory);
        try
        {
            var model = new CausalLM(config, device, dtype ?? StoredDtype(tensors.Values), initialize: false);
            try
            {
                model.LoadWeights(tensors);
                return model;
            }
            catch
            {
                model.Dispose();
                throw;
            }
        }
        finally
        {
            foreach (var tensor in tensors.Values)
                tensor.Dispose();
        }
    }

    /// <summary>Copies the tensors of a checkpoint into the parameters, which keep their dtype and device.</summary>
    /// <param name="tensors">
    /// By name, as <see cref="SafeTensors.LoadDirectory"/> reads them: exactly the model's state dict. Names and forms of older
    /// versions of the peers are understood.
    /// </param>
    /// <exception cref="CheckpointMismatchException">
    /// Tensors are missing, unexpected or of another shape. All are listed, and no parameter has changed.
    /// </exception>
    /// <exception cref="ArgumentException">A tensor holds nothing but NaN. No parameter has changed.</exception>
    public void LoadWeights(IReadOnlyDictionary<string, Tensor> tensors)
    {
        ArgumentNullException.ThrowIfNull(tensors);
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var parameters = state_dict();
        var matched = Checkpoint.Match(tensors, parameters, Config);
        foreach (var (key, tensor) in matched)
            Guard.NotAllNaN(tensor, key);
        foreach (var (key, tensor) in matched)
            parameters[key].copy_(tensor);
    }

    /// <summary>
    /// Saves the model in the form that <see cref="FromPretrained"/> and Hugging Face read: <c>config.json</c> and
    /// <c>model.safetensors</c>. A file is replaced only when the new one is complete.
    /// </summary>
    /// <param name="directory">Made if it does not exist.</param>
    /// <exception cref="IOException">The folder cannot be written. The files in it are as they were.</exception>
    public void SavePretrained(string directory)
    {
        ArgumentException.ThrowIfNullOrEmpty(directory);
        var config = Path.Combine(directory, ConfigFile);
        var temporary = $"{config}.{Guid.NewGuid():N}.tmp";
        try
        {
            Directory.CreateDirectory(directory);
            File.WriteAllText(temporary, Config.ToJson());
            var metadata = new Dictionary<string, string> { ["format"] = "pt" }; // transformers asks for it
            using (NewDisposeScope())
                SafeTensors.Save(Path.Combine(directory, WeightsFile), state_dict(), metadata);
            File.Move(temporary, config, overwrite: true);
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
            throw new IOException($"The model cannot be saved in '{directory}': {exception.Message}", exception);
        }
        finally
        {
            if (File.Exists(temporary)) // only after a failure
                File.Delete(temporary);
        }
    }

    /// <summary>The dtype of the bulk of the weights: some small ones may be stored in float32.</summary>
    private static ScalarType? StoredDtype(IEnumerable<Tensor> tensors) =>
        tensors.Where(tensor => tensor.dtype is ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16)
            .MaxBy(tensor => tensor.numel())?.dtype;
}
