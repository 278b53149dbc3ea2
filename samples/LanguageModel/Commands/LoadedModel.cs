using FlaSharp.Models;
using LanguageModel.Data;
using LanguageModel.Training;
using TorchSharp;
using static TorchSharp.torch;

namespace LanguageModel.Commands;

/// <summary>A model for use, with its tokenizer.</summary>
internal sealed record LoadedModel(CausalLM Model, ITextTokenizer Tokenizer, TrainOptions Options) : IDisposable
{
    /// <param name="folder">A checkpoint, or a run, whose newest checkpoint is taken.</param>
    /// <param name="device">Where the model goes.</param>
    /// <exception cref="UserError">There is no checkpoint there.</exception>
    public static LoadedModel From(string folder, Device device)
    {
        string checkpoint = Checkpoint.Is(folder) ? folder : Checkpoint.Latest(folder)
            ?? throw new UserError($"--checkpoint {folder}: there is no checkpoint of this program in it.");
        TrainOptions options = Checkpoint.ReadState(checkpoint).Options;
        var model = CausalLM.FromPretrained(checkpoint, device, ModelFactory.Type(options.Dtype));
        model.eval();
        return new LoadedModel(model, Tokenizers.Create(options.Tokenizer), options);
    }

    public void Dispose() => Model.Dispose();
}
